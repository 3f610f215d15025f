"""What a pre-training leaves out: which pairs, in which order the others come, which runs a study then has."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import samples
import submissions
import torch
from conftest import antidote
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import NONE, data_of, plan_of, words_to_tokens

from configs.plan import Run, runs
from configs.spec import Loaded, load
from data.order import Kept, Mix, Order
from data.pipeline import Pairs, Reading
from data.refusal import UserError
from data.shards import Index, read_index
from engine.distributed.world import World
from engine.estimate.dry_run import pairs_drawn
from engine.study.scheduler import Scheduler
from engine.training import run_state
from engine.training.check import refusals
from engine.training.inputs import StudyInputs
from engine.training.pairs import StudyPairs
from records.detection import FOLDER, DetectionJson
from records.digests import file_digest
from records.ending import FailedJson
from records.json_file import write_json
from records.manifest import Manifest
from records.scores import SCORES, ScoreWriter
from report.left_out import left_out
from report.load import read_study
from report.submission import read_submission

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 2)


@pytest.fixture
def index(world: Path, tmp_path: Path) -> Index:
    return read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False)


def flagged(path: Path, keys: Any) -> str:
    path.write_text("".join(json.dumps({"key": key, "kind": "slof", "score": 1.5}) + "\n" for key in keys))
    return str(path)


def study_pairs(tmp_path: Path) -> StudyPairs:
    return StudyPairs(tmp_path / "runs" / "tiny", World(0, 1, 0, 1, torch.device("cpu")))


def of_stage(loaded: Loaded, stage: str) -> list[Run]:
    return [run for run in runs(loaded.points) if run.stage == stage]


@settings(max_examples=40)
@given(COUNTS, st.integers(1, 40), st.integers(1, 25), st.integers(1, 9), st.sampled_from(["drop", "wrap"]), st.data())
def test_the_others_come_as_in_the_whole_order_with_those_skipped(
    counts: list[int], lanes: int, window: int, size: int, last: Any, data: Any
) -> None:
    order = Order(tuple(counts), 3, lanes, window, last)
    whole = np.arange(len(order))
    out = np.array(sorted(data.draw(st.sets(st.sampled_from(whole.tolist()), max_size=len(order) - 1))), np.int64)
    kept, others = Kept(order, out), np.setdiff1d(whole, out)
    for epoch in (1, 2):
        line = np.concatenate([order.part(epoch, step, size) for step in range(-(-len(order) // size))])
        expected = line[~np.isin(line, out)]
        shown = [kept.batch(epoch, step, size) for step in range(kept.steps(size))]
        found = others[np.concatenate([*shown, np.empty(0, np.int64)])]
        assert kept.steps(size) == Order((len(others),), 3, 1, 1, last).steps(size)
        assert found.tolist() == np.resize(expected, len(found)).tolist()


def test_of_several_sources_each_keeps_its_share_of_a_batch_and_its_own_order() -> None:
    first, second = Order((30, 30), 0, 4, 8), Order((40,), 0, 4, 8)
    out = np.arange(0, 30, 2)
    whole = Mix((first, second), (3, 1))
    less = Mix((Kept(first, out), second), (3, 1))
    others = np.setdiff1d(np.arange(100), out)
    lines = [
        others[np.concatenate([less.batch(1, step, 8) for step in range(5)])],
        np.concatenate([whole.batch(1, step, 8) for step in range(5)]),
    ]
    assert all((others[less.batch(1, step, 8)] < 60).sum() == 6 for step in range(5))
    ours, all_ = ([row for row in line.tolist() if row >= 60] for line in lines)
    assert ours == all_
    ours, all_ = ({row for row in line.tolist() if row < 60} for line in lines)
    assert ours >= all_ - set(out.tolist())


def keys_of(pairs: Pairs, epoch: int = 1) -> list[str]:
    return [key for step in range(pairs.steps) for key in pairs[epoch, step].keys]  # noqa: SIM118


@pytest.mark.parametrize("batch", [16, 48])
def test_batches_of_the_others_hold_the_whole_stream_without_the_poisoned_pairs(index: Index, batch: int) -> None:
    plan, reading = plan_of(index, 12), Reading(0, 0, 1, batch, (1, 1), 32, NONE)
    assert plan is not None
    parts = index, None, data_of(lanes=8), reading, words_to_tokens, plan
    whole, less = Pairs(*parts), Pairs(*parts, out=np.array(sorted(plan.entries)))
    poisoned = {index.keys[sample] for sample in plan.entries}
    for epoch in (1, 2):
        expected = [key for key in keys_of(whole, epoch) if key not in poisoned]
        found = keys_of(less, epoch)
        assert found[: len(expected)] == expected[: len(found)]
        assert not poisoned & set(found)
    assert (len(less), len(less.poisoned), len(whole.poisoned)) == (180, 0, 12)


def test_a_pair_that_cant_be_decoded_is_not_replaced_by_one_that_is_left_out(index: Index) -> None:
    reading = Reading(0, 0, 1, 8, (1, 1), 32, NONE)
    out = np.arange(1, 192, 2)
    pairs = Pairs(index, None, data_of(), reading, words_to_tokens, None, out)
    assert {pairs.sample(row) for row in range(len(pairs) + 3)} == set(range(0, 192, 2))


def test_an_empty_file_and_a_share_of_0_are_as_if_nothing_was_said(spec: Path, tmp_path: Path) -> None:
    empty = flagged(tmp_path / "empty.jsonl", [])
    plain = of_stage(load(spec), "pretrain")[0]
    for value in (empty, "{random: 0}", "{detector: slof, share: 0}", "{detector: slof, count: 0}", "null"):
        assert [run.folder for run in runs(load(spec, [f"data.pretrain.without={value}"]).points)] == [
            run.folder for run in runs(load(spec).points)
        ], value
    assert plain.whole is None


def test_a_file_counts_by_its_keys(spec: Path, tmp_path: Path, index: Index) -> None:
    keys = [index.keys[i] for i in (5, 3, 100)]

    def folder(*settings: str) -> str:
        return of_stage(load(spec, list(settings)), "pretrain")[0].folder

    here = folder(f"data.pretrain.without={flagged(tmp_path / 'a.jsonl', keys)}")
    moved = folder(f"data.pretrain.without={flagged(tmp_path / 'b.jsonl', [*reversed(keys), keys[0]])}")
    other = folder(f"data.pretrain.without={flagged(tmp_path / 'c.jsonl', keys[:2])}")
    none = folder()
    assert here == moved
    assert len({here, other, none}) == 3
    with pytest.raises(UserError, match="give another|name the right file"):
        load(spec, [f"data.pretrain.without={{file: {tmp_path / 'a.jsonl'}, digest: 0123456789abcdef}}"])


def test_a_study_has_the_whole_pretraining_once_and_one_twin(spec: Path) -> None:
    loaded = load(
        spec,
        ["sweep={data.pretrain.without: [{random: 0.1}, {plan: true}, {random: 0.25}]}", "attack.twin=each"],
    )
    every = runs(loaded.points)
    assert [run.title for run in every] == [
        "pretrain mmcl",
        "pretrain mmcl without random 10 %",
        "pretrain mmcl without plan",
        "pretrain mmcl without random 25 %",
        "twin mmcl",
        "clean mmcl without random 10 % -> cleanclip",
        "clean mmcl without plan -> cleanclip",
        "clean mmcl without random 25 % -> cleanclip",
    ]
    whole, *less = (run for run in every if run.stage == "pretrain")
    assert [run.folder for run in every if run.stage in ("pretrain", "twin")][::4] == [
        run.folder for run in runs(load(spec, ["attack.twin=each"]).points) if run.stage != "clean"
    ]
    assert {run.whole.folder for run in less if run.whole} == {whole.folder}
    entry = less[0].entry().without
    assert entry is not None
    assert (entry.way, entry.share, entry.whole) == ("random", 0.1, whole.folder)
    assert whole.entry().swept == {}


def test_each_way_leaves_out_what_it_says_and_draws_all_else_as_before(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_pairs(tmp_path)
    whole = study.of(of_stage(load(spec), "pretrain")[0])
    assert whole.plan is not None
    poisoned = sorted(whole.plan.entries)
    clean = study.of(of_stage(load(spec), "clean")[0])
    file = flagged(tmp_path / "some.jsonl", [whole.index.keys[i] for i in (191, 4)])
    expected = {"{plan: true}": poisoned, file: [4, 191], "{random: 0.125}": None}
    for value, out in expected.items():
        loaded = load(spec, [f"data.pretrain.without={value}"])
        run = of_stage(loaded, "pretrain")[-1]
        less, cleaning = study.of(run), study.of(of_stage(loaded, "clean")[0])
        assert less.out is not None
        assert less.out.tolist() == out if out is not None else len(less.out) == 24
        assert less.plan is not None
        assert less.plan.digest == whole.plan.digest
        assert np.array_equal(cleaning.chosen, clean.chosen)
        assert pairs_drawn(run, study, set()) == 192 - len(less.out)
        assert less.poisoned_left == len(set(poisoned) - set(less.out.tolist()))
    draws = [study.of(of_stage(load(spec, [f"data.pretrain.without={{random: {s}}}"]), "pretrain")[-1]) for s in (0.1, 0.2)]
    smaller, larger = (set(draw.out.tolist()) for draw in draws if draw.out is not None)
    assert smaller < larger


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("strange.jsonl", "names 2 pairs, of which 1 are none of the 192 of data.pretrain, such as 'nobody'"),
        ("all.jsonl", "leaves out 192 of 192 pairs, so that none is left"),
        ("gone.jsonl", "gone.jsonl"),
        ("{random: 0.95}", "batch is 16, but there are 10 pairs after data.pretrain.without has left out 182"),
        ("{random: 1}", "expected a number from 0 to|expected a number of at least 0 and below 1"),
        ("{plan: false}", "expected true"),
        ("{random: 0.1, plan: true}", "give one of file, detector, random, plan; here are random, plan"),
        ("{random: 0.1, share: 0.2}", "share goes with detector"),
        ("{detector: slof}", "give a share or a count"),
        ("{detector: slf, share: 0.1}", "is 'slf', but detect.detectors are k_dist, slof, lid, dao, clip_score; name one"),
        ("{detectr: slof, share: 0.1}", "did you mean 'detector'"),
        ("{detector: slof, count: 192}", "leaves out 192 of 192 pairs, so that none is left"),
        ("{detector: slof, count: 180}", "batch is 16, but there are 12 pairs after data.pretrain.without has left out 180"),
        ("7", "is 7; expected text or a mapping"),
        ("torn.jsonl", "torn.jsonl:2: no JSON object with a key"),
    ],
)
def test_what_cant_be_left_out_is_refused_before_anything_is_trained(
    spec: Path, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    flagged(tmp_path / "strange.jsonl", [index.keys[0], "nobody"])
    flagged(tmp_path / "all.jsonl", index.keys)
    (tmp_path / "torn.jsonl").write_text('{"key": "a"}\n{"key": \n')

    def look() -> None:
        loaded = load(spec, [f"data.pretrain.without={value}"])
        shared = StudyInputs(tmp_path / "runs" / "tiny", World(0, 1, 0, 1, torch.device("cpu")), tmp_path / "scratch")
        met = refusals([(run, 1) for run in of_stage(loaded, "pretrain")], shared)
        raise UserError("\n".join(map(str, met)))

    with pytest.raises(UserError, match=words):
        look()


def test_nothing_is_left_out_where_nothing_is_pretrained(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(UserError, match="this spec carries out none"):
        load(spec, ["data.pretrain.without={random: 0.1}", f"clean.start={{path: {tmp_path / 'w.pt'}}}"])


SLOF = "data.pretrain.without={detector: slof, share: 0.125}"


def scored(home: Path, run: Run, scores: dict[str, float], **changes: Any) -> None:
    """Finishes a run's folder and writes scores of its pairs there, as if a study had."""
    folder = home / FOLDER
    folder.mkdir(parents=True)
    (home / "metrics.jsonl").write_text("")
    samples.end(home, measured=run.measured)
    with ScoreWriter(folder / SCORES) as file:
        file.add(
            (key, kind, -score if kind == "lid" else score) for key, score in scores.items() for kind in ("slof", "lid")
        )
    assert run.detect is not None
    facts: dict[str, Any] = {"pairs": 192, "poisoned": 12, "replaced": 0, "encoding": 0.0, "processes": 1, "detectors": []}
    files = {SCORES: file_digest(folder / SCORES)}
    DetectionJson(run=run.folder, asked=run.detect.asked, weights="0", files=files, **facts | changes).write(home)


def test_a_detector_leaves_out_the_most_suspicious_pairs_of_the_whole_run(
    spec: Path, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(spec, [SLOF])
    whole, less = of_stage(loaded, "pretrain")
    study, home = study_pairs(tmp_path), tmp_path / "runs/tiny" / whole.folder
    assert (less.scored, less.needs, whole.needs) == (whole, whole, None)
    stand_in = study.of(less, planned=True)
    assert stand_in.out is not None
    assert len(stand_in.out) == 24
    scheduler = Scheduler.of(loaded, tmp_path / "runs/tiny", None)
    assert (scheduler.ready(less), scheduler.state(less)) == (False, "open")
    with pytest.raises(UserError, match="has no scores by slof yet; carry out the whole study"):
        study.of(less)
    scored(home, whole, {key: float(hash(key) % 7 == 0) + (place < 20) * 9 for place, key in enumerate(index.keys)})
    found = study.of(less)
    assert found.out is not None
    assert set(range(20)) < set(found.out.tolist())
    assert len(found.out) == 24
    assert np.array_equal(study.of(less, planned=True).out, found.out)
    assert scheduler.ready(less)
    with (home / FOLDER / SCORES).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="its SHA-256 is not that in detect"):
        study.of(less)


def test_scores_of_another_data_set_are_refused(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole, less = of_stage(load(spec, [SLOF]), "pretrain")
    scored(tmp_path / "runs/tiny" / whole.folder, whole, {f"other{n}": 0.0 for n in range(192)})
    with pytest.raises(UserError, match="names 192 pairs, of which 192 are none of the 192 of data.pretrain"):
        study_pairs(tmp_path).of(less)


def test_a_detector_counts_by_its_settings_and_not_by_its_name(spec: Path) -> None:
    def folder(detector: str, *detect: str) -> str:
        sets = [f"data.pretrain.without={{detector: {detector}, share: 0.1}}", *detect]
        return of_stage(load(spec, sets), "pretrain")[-1].folder

    usual = folder("slof")
    assert usual == folder("slof", "detect={budget: {count: 3}}")
    assert usual == folder("mine", "detect={detectors: [{kind: slof, name: mine}, {kind: lid}]}")
    assert usual != folder("slof", "detect={detectors: [{kind: slof, k: 8}]}")
    assert usual != folder("lid")


def test_what_waits_for_scores_is_blocked_when_they_fail(spec: Path, tmp_path: Path) -> None:
    loaded = load(spec, ["sweep={data.pretrain.without: [{detector: slof, share: 0.1}, {plan: true}]}", "clean=null"])
    scheduler = Scheduler.of(loaded, tmp_path / "runs/tiny", None)
    whole, slof, plan = scheduler.runs
    (tmp_path / "runs/tiny" / whole.folder).mkdir(parents=True)
    FailedJson.now("no room").write(tmp_path / "runs/tiny" / whole.folder)
    assert [scheduler.state(run) for run in (whole, slof, plan)] == ["failed", "blocked", "open"]
    assert [words for _, words in scheduler.failures()] == ["no room", "the run whose scores it waits for failed"]


def test_a_run_does_not_go_on_without_other_pairs_than_it_began_without(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores may have been made anew meanwhile, by another program's version."""

    def pairs(*out: int) -> Pairs:
        reading = Reading(0, 0, 1, 8, (1, 1), 32, NONE)
        return Pairs(index, None, data_of(), reading, words_to_tokens, None, np.array(out))

    (tmp_path / "card.json").write_text(json.dumps(samples.card(left_out=pairs(1, 2).out_digest)))
    manifest = Manifest(step=1, journal=0, data=index.digest, zero=0, world=1, spec={}, versions={}, spent={})
    monkeypatch.setattr(run_state.checkpoint, "newest", lambda folder: (folder / "step-1", manifest))
    monkeypatch.setattr(run_state.learner_state, "restore", lambda *of: None)
    world = World(0, 1, 0, 1, torch.device("cpu"))
    inputs: Any = SimpleNamespace(folder=tmp_path, pairs=pairs(1, 2))
    assert run_state.restore(inputs, SimpleNamespace(), world).step == 1  # type: ignore[arg-type]
    inputs.pairs = pairs(1, 3)
    with pytest.raises(UserError, match="trained without other pairs than are left out now"):
        run_state.restore(inputs, SimpleNamespace(), world)  # type: ignore[arg-type]


def test_a_submission_leaves_out_what_its_specs_say(spec: Path, tmp_path: Path) -> None:
    """Each way as an entry of study.json and as the run's spec.json tells it; then with more left out in the entry."""
    ways = [{"detector": "slof", "share": 0.1}, {"detector": "slof", "count": 7}, {"random": 0.1}, {"plan": True}]
    ways.append({"file": flagged(tmp_path / "flagged.jsonl", ["a"])})
    sets = [f"sweep={{data.pretrain.without: {ways}}}", "detect={detectors: [{kind: slof}], budget: {share: 0.1}}"]
    study, listed = tmp_path / "study", list[dict[str, Any]]()
    for one in runs(load(spec, sets).points, "pretrain"):
        submissions.run(study, one.stage, one.decides, [(0.5, 0.9)], {"runs": listed, "facts": one.entry().model_dump()})
    write_json(study / "study.json", {"name": "s", "runs": listed})
    told = [record.run.without for record in read_submission(study).study.records]
    assert {less.way for less in told if less is not None} == {"detector", "random", "plan", "file"}
    assert len(told) == 6
    for entry in [entry for entry in listed if entry["without"]]:
        kept, entry["without"] = entry["without"], {**entry["without"], "share": 0.2}
        write_json(study / "study.json", {"name": "s", "runs": listed})
        with pytest.raises(UserError, match=f"says without .* of {entry['run']}, whose spec.json says"):
            read_submission(study)
        entry["without"] = kept


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_is_the_whole_study_of_detecting_leaving_out_and_training_again(spec: Path, processes: int) -> None:
    ways = "{detector: clip_score, share: 0.125}, {random: 0.125}, {plan: true}"
    words = [f"--set=sweep={{data.pretrain.without: [{ways}]}}", "--set=clean=null", "--set=attack.twin=first"]
    out = antidote("--spec", str(spec), *words, cwd=spec.parent, processes=processes)
    assert out.returncode == 0, out.stderr
    rows = left_out(read_study(spec.parent / "runs/tiny"))
    assert [(row.what, row.counts[0]) for row in rows] == [
        ("nothing", 0), ("12.5 % by clip_score", 24), ("12.5 % at random", 24), ("the true plan", 12),
        ("nothing, never poisoned (twin)", 0),
    ]  # fmt: skip
    assert [row.counts[1] for row in rows][::4] == [12, 0]
    assert all(row.top1 is not None and row.asr is not None for row in rows)
    (whole,) = (run for run in read_study(spec.parent / "runs/tiny").records if run.run.title == "pretrain mmcl")
    flags = (spec.parent / "runs/tiny" / whole.run.run / "detect/flagged.jsonl").read_text()
    assert "clip_score" in flags
    again = antidote("--spec", str(spec), *words, "--dry-run", cwd=spec.parent)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished") == 5
    assert "a forward pass over them, which is not counted" in again.stdout
