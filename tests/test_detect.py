"""The pairs of a finished pre-training scored: files, numbers, ranks, the twin, other programs' scores, refusals."""

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SPEC, antidote
from pydantic import ValidationError

from configs.plan import runs
from configs.spec import load
from data.decode import DecodeError
from data.refusal import UserError
from data.seeding import number_of
from engine.detect import budget_of, study_of, twin_of
from engine.detection.encode import Blocks, own_blocks
from engine.detection.foreign import read_foreign
from engine.detection.judge import against_twin, attacks_of, result_of
from engine.distributed.world import World
from engine.training.pair_losses import pair_losses
from measures.detectors.budget import Budget, Flagged
from objectives.contract import Features
from objectives.exchange import SingleRank
from records.detection import FOLDER, DetectionJson, scored_as
from records.digests import file_digest
from records.ending import FinishedJson
from records.scores import FLAGGED, SCORES, ScoreWriter, read_scores
from records.spec_json import read_decides
from report.figures import figures
from report.findings import finding_faults
from report.load import read_study
from report.page import page_of
from report.suspects import HEADS, scored_rows, scored_table
from report.verdict import make_report

DETECT = """
detect:
  detectors:
    - {kind: k_dist, k: 4}
    - {kind: slof, k: 4}
    - {kind: lid, k: 8, among: pairs}
    - {kind: clip_score}
    - {kind: abl, epochs: 2}
    - {kind: dao, k: 4, form: published, raw: true, batch: 64, name: released}
  budget: {share: 0.1}
"""
TITLES = ["k_dist", "slof", "lid", "clip_score", "abl", "released"]


@pytest.fixture(scope="module")
def study(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training and its twin, scored."""
    home = tmp_path_factory.mktemp("detect")
    (home / "tiny.yaml").write_text(SPEC.format(world=world) + DETECT)
    done = antidote("--spec", "tiny.yaml", "--stage", "pretrain", "--set", "attack.twin=first", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "runs/tiny"


def home_of(study: Path, stage: str) -> Path:
    return next(study.glob(f"{stage}-*"))


def by_kind(path: Path) -> dict[str, dict[str, float]]:
    """The scores in a file by kind and key."""
    out: dict[str, dict[str, float]] = {}
    for _, row in read_scores(path):
        out.setdefault(row.kind, {})[row.key] = row.score
    return out


def test_a_study_scores_its_pairs(study: Path) -> None:
    home = home_of(study, "pretrain")
    result, scores, flags = (
        DetectionJson.read(home),
        by_kind(home / FOLDER / SCORES),
        by_kind(home / FOLDER / FLAGGED),
    )
    assert result is not None
    assert (result.pairs, result.poisoned, result.replaced) == (192, 12, 0)
    assert [one.title for one in result.detectors] == TITLES == list(scores)
    poisoned = {entry["key"] for entry in json.loads((home / "poison.json").read_text())["entries"]}
    for one in result.detectors:
        own, chosen = scores[one.title], flags[one.title]
        assert len(own) == one.scored == 192
        assert len(chosen) == one.flagged == 19
        assert set(chosen.items()) <= set(own.items())
        assert min(chosen.values()) == one.threshold >= sorted(own.values())[-20]
        assert one.poisoned_flagged == len(poisoned & set(chosen))
        bad, good = ([own[key] for key in own if (key in poisoned) == is_bad] for is_bad in (True, False))
        wins = [(a > b) + 0.5 * (a == b) for a in bad for b in good]
        assert one.numbers["auroc"] == pytest.approx(sum(wins) / len(wins))
        assert sum(one.clean) == 180
        assert sum(one.poisoned) == 12
    assert not list((home / FOLDER).glob(".*"))


def test_the_twin_tells_false_flags(study: Path) -> None:
    home, twin = home_of(study, "pretrain"), home_of(study, "twin")
    result, theirs = DetectionJson.read(home), by_kind(twin / FOLDER / SCORES)
    assert result is not None
    assert result.twin == twin.name
    of_twin = DetectionJson.read(twin)
    assert of_twin is not None
    assert of_twin.poisoned == 0
    for one, there in zip(result.detectors, of_twin.detectors, strict=True):
        above = sum(score >= one.threshold for score in theirs[one.title].values())
        assert one.twin["threshold"] == above / 192
        assert one.twin["rule"] == 19 / 192
        assert not there.numbers
        assert not there.twin


def test_the_numbers_are_those_computed_anew_from_the_orders(study: Path) -> None:
    runs = {record.run.run: record for record in read_study(study).records if record.detection is not None}
    for name, record in runs.items():
        assert list(finding_faults(study / name, record, read_decides(study / name) or {}, runs)) == []
    orders = [[one.order for one in record.detection.detectors] for record in runs.values() if record.detection]
    assert [len(list(filter(None, texts))) for texts in orders] == [len(TITLES), 0]  # of the twin there is none to keep


def test_the_report_tells_of_the_scores(study: Path) -> None:
    told = make_report(read_study(study))
    result = DetectionJson.read(home_of(study, "pretrain"))
    assert result is not None
    rows = scored_rows(told.scored)
    assert [cells[0][0] for _, cells in rows] == TITLES
    for one, (way, cells) in zip(result.detectors, rows, strict=True):
        assert way == "MMCL"
        assert dict(zip(HEADS, cells, strict=True))["AUROC"] == (f"{one.numbers['auroc']:.3f}", "")
        assert [text for text, _ in cells if not text] == []
    columns, lines = scored_table(told.scored)
    assert len(lines) == len(TITLES)
    assert {"auroc", "recall_0.1", "twin_threshold", "merged"} <= set(columns)
    drawings = {figure.name: figure.draw for figure in figures(told)}
    assert len(drawings["pair-scores"](False).axes) == len(drawings["pair-rocs"](True).axes) == len(TITLES)
    assert "Scores of training pairs" in page_of(told, [])


def test_losses_are_those_of_the_first_epochs(study: Path) -> None:
    home = home_of(study, "pretrain")
    table = np.fromfile(home / "losses.f32", np.float32).reshape(2, 192)
    assert np.isfinite(table).all()
    assert 0 < table.min() < table.max() < 20
    end = FinishedJson.read(home)
    assert end is not None
    assert "losses.f32" in end.files
    scores = by_kind(home / FOLDER / SCORES)["abl"]
    assert sorted(scores.values()) == pytest.approx(sorted((-table.mean(0)).tolist()), rel=1e-5)


def test_the_loss_of_pairs_averages_to_that_of_the_batch() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = (F.normalize(torch.randn(6, 4, generator=draw), dim=1) for _ in range(2))
    features = Features((left,), (right,), {"scale": torch.tensor([1.5]).log()})
    logits = 1.5 * left @ right.T
    own = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    each = pair_losses(features, SingleRank())
    assert each.shape == (6,)
    assert each.mean().item() == pytest.approx(own.item())


def command(study: Path, processes: int, *words: str) -> Any:
    script = [sys.executable, str(ROOT / "engine/detect.py"), *words]
    where: dict[str, Any] = {"cwd": study.parents[1], "env": forked.environment(OMP_NUM_THREADS="1")}
    return forked.run_ranks(script, processes, 200, **where) if processes > 1 else forked.run(script, 200, **where)


def test_three_ranks_write_the_same_file(study: Path) -> None:
    home = home_of(study, "pretrain")
    before = (home / FOLDER / SCORES).read_bytes()
    done = command(study, 3, "--run", str(home))
    assert done.returncode == 0, done.stderr
    assert "k_dist: 19 flagged" in done.stdout
    assert (home / FOLDER / SCORES).read_bytes() == before
    result = DetectionJson.read(home)
    assert result is not None
    assert result.processes == 3


@pytest.mark.slow
@pytest.mark.parametrize("words", [("machine.eval_batch=7",), ("machine.micro_batch=4", "machine.workers=2")])
def test_neither_micro_batches_nor_workers_count(study: Path, words: tuple[str, ...]) -> None:
    home = home_of(study, "pretrain")
    before = by_kind(home / FOLDER / SCORES)
    settings = [word for setting in words for word in ("--set", setting)]
    done = command(study, 2, "--run", str(home), "--twin", str(home_of(study, "twin")), *settings)
    assert done.returncode == 0, done.stderr
    for title, scores in by_kind(home / FOLDER / SCORES).items():
        assert scores == pytest.approx(before[title], rel=1e-4, abs=1e-4), title


@pytest.mark.slow
def test_scores_are_made_anew_when_another_programs_file_changes(study: Path, tmp_path: Path) -> None:
    home, theirs = tmp_path / "copy/runs/tiny" / home_of(study, "pretrain").name, tmp_path / "theirs.jsonl"
    shutil.copytree(study, home.parent)
    keys = by_kind(home / FOLDER / SCORES)["slof"]
    theirs.write_text("".join(json.dumps({"key": key, "score": at}) + "\n" for at, key in enumerate(keys)))
    done = command(home.parent, 1, "--run", str(home), "--detector", "slof", "--scores", str(theirs))
    assert done.returncode == 0, done.stderr
    result = DetectionJson.read(home)
    assert result is not None
    assert result.foreign == {str(theirs): file_digest(theirs)}
    assert scored_as(home, result.asked)
    theirs.write_text(theirs.read_text()[1:])
    assert not scored_as(home, result.asked)


@pytest.mark.slow
def test_nothing_of_a_training_changes(study: Path, world: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPEC.format(world=world))
    done = antidote("--spec", "tiny.yaml", "--stage", "pretrain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain, noted = (FinishedJson.read(home_of(one, "pretrain")) for one in (tmp_path / "runs/tiny", study))
    assert plain is not None
    assert noted is not None
    assert plain.weights == noted.weights


def test_the_section_changes_no_fingerprint(study: Path, spec: Path) -> None:
    plain = runs(load(spec).points, "pretrain")
    assert [run.folder for run in plain] == [home_of(study, "pretrain").name]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("detectors: [{kind: slof}, {kind: slof, k: 8}]", "two detectors are called 'slof'; give one a name"),
        ("detectors: []", "leaves nothing to score with; give one"),
        ("detectors: [{kind: abl}]", "abl counts 10 epochs, but pretrain.epochs is 2; lower abl's epochs"),
        ("budget: {share: 0.1, count: 3}", "gives share and count of share, count and outlier; give one of them"),
        ("detectors: [{kind: knn}]", "unknown kind 'knn'"),
        ("detectors: [{kind: lid, k: 1}]", "is 1; expected"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(section: str, words: str, spec: Path) -> None:
    spec.write_text(f"{spec.read_text()}\ndetect: {{{section}}}\n")
    with pytest.raises(UserError, match=words):
        load(spec)


def test_losses_of_a_stage_that_trains_no_weight_are_refused(spec: Path) -> None:
    estimated = ["pretrain.start={path: weights.safetensors}", "pretrain.norms=estimated", "clean=null"]
    load(spec, [*estimated, "detect={}"])
    with pytest.raises(UserError, match=r"pretrain.norms is estimated, where no weight is trained; leave abl out"):
        load(spec, [*estimated, "detect={detectors: [{kind: abl, epochs: 1}]}"])


def test_a_sweep_does_not_reach_it(spec: Path) -> None:
    with pytest.raises(UserError, match=r"no field 'detect.budget'; it can't be swept"):
        load(spec, ["sweep={detect.budget: [{share: 0.1}]}"])


def test_scores_of_another_program_are_of_one_model_and_never_of_its_twin(spec: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text('{"key": "a", "score": 1}\n')
    of_theirs, both = f"detect={{detectors: [], scores: [{theirs}]}}", f"detect={{scores: [{theirs}]}}"
    poisoned, twin = runs(load(spec, [both, "attack.twin=each"]).points, "pretrain")
    assert [len(run.detect.scores) for run in (poisoned, twin) if run.detect is not None] == [1, 0]
    assert [run.detect is None for run in runs(load(spec, [of_theirs, "attack.twin=each"]).points, "pretrain")] == [
        False,
        True,
    ]
    told = antidote("--spec", spec.name, "--dry-run", "--set", both, "--set", "sweep={seed: [1, 2]}", cwd=spec.parent)
    assert told.returncode == 2
    assert "scores of another program are of one model's pairs, but 2 pre-trainings would be judged by them" in told.stderr


def test_pairs_are_scored_as_asked_until_another_programs_file_changes(study: Path, tmp_path: Path) -> None:
    home, theirs, beside = home_of(study, "pretrain"), tmp_path / "theirs.jsonl", tmp_path / "run"
    (beside / FOLDER).mkdir(parents=True)
    shutil.copy(home / FinishedJson.FILE, beside)
    theirs.write_text('{"key": "a", "score": 1}\n')
    result = DetectionJson.read(home)
    assert result is not None
    assert "foreign" not in result.model_dump()
    result.model_copy(update={"foreign": {str(theirs): file_digest(theirs)}}).write(beside)
    assert scored_as(beside, result.asked)
    theirs.write_text('{"key": "a", "score": 12}\n')
    assert not scored_as(beside, result.asked)
    theirs.unlink()
    assert scored_as(beside, result.asked), "whoever reads it says that it is missing"


class Listed:
    """An index of some keys."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.hashes = keys, number_of(keys)

    def __len__(self) -> int:
        return len(self.keys)


def test_scores_of_another_program(tmp_path: Path) -> None:
    index: Any = Listed(["a", "b", "c", "d"])
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"key": "d", "score": 2}\n{"key": "a", "score": 1}\n{"key": "a", "score": 3, "kind": "vdc"}\n')
    found = read_foreign(path, index, np.array([0, 1, 3]))
    assert found.keys() == {"theirs", "vdc"}
    np.testing.assert_equal(found["theirs"], [1, np.nan, 2])
    np.testing.assert_equal(found["vdc"], [3, np.nan, np.nan])
    for text, words in (
        ('{"key": "a", "score": 1}\n{"key": "a", "score": 1}\n', r":2: 'a' has a score above; take one out"),
        ('{"key": "x", "score": 1}\n', r":1: 'x' is no pair of this data; give the scores of these 4 pairs"),
        ('{"key": "c", "score": 1}\n', r"scores none of the 3 pairs; its keys must be the samples' names"),
        ("", r"scores none of the 3 pairs"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_foreign(path, index, np.array([0, 1, 3]))


def test_each_attack_is_judged_by_itself() -> None:
    """Six pairs, of which the first two are each attack's one: it is held against the clean ones alone."""
    plan: Any = SimpleNamespace(
        chosen=np.array([True, True, False, False, False, False]),
        entries={0: SimpleNamespace(attack=0), 1: SimpleNamespace(attack=1)},
    )
    attacks = attacks_of(plan, np.arange(6))
    assert attacks.tolist() == [0, 1, -1, -1, -1, -1]
    scores = np.array([9.0, 0.0, 1.0, 2.0, 3.0, np.nan])
    found = result_of("x", "foreign", scores, attacks, Flagged(np.array([0]), 9.0), {})
    assert found.numbers["auroc"] == 0.5
    assert [found.attacks[name]["auroc"] for name in ("1", "2")] == [1.0, 0.0]
    assert (found.scored, found.flagged, found.poisoned_flagged) == (5, 1, 1)
    assert attacks_of(None, np.arange(2)).tolist() == [-1, -1]


def test_an_outlier_rule_counts_what_lies_above(tmp_path: Path) -> None:
    """At a share the least score within it is flagged, under the outlier rule only what is above."""
    twin = tmp_path / "twin-0"
    (twin / FOLDER).mkdir(parents=True)
    with ScoreWriter(twin / FOLDER / SCORES) as file:
        file.add(("k", "x", score) for score in (1.0, 2.0, 3.0, 4.0))
    scores, attacks = np.array([3.0, 3.0, 1.0, 0.0]), np.array([0, -1, -1, -1])
    one = result_of("x", "slof", scores, attacks, Flagged(np.array([0]), 3.0), {})
    facts: dict[str, Any] = {
        "run": "twin-0", "asked": {}, "weights": "", "pairs": 4, "poisoned": 1, "replaced": 0, "encoding": 0,
        "processes": 1, "files": {}, "detectors": [one],
    }  # fmt: skip
    record = DetectionJson(**facts)
    record.write(twin)
    assert against_twin(record, Budget(share=0.5), twin).detectors[0].twin["threshold"] == 0.5
    assert against_twin(record, Budget(outlier=2), twin).detectors[0].twin["threshold"] == 0.25
    theirs = one.model_copy(update={"title": "theirs", "kind": "foreign"})
    beside = against_twin(record.model_copy(update={"detectors": [one, theirs]}), Budget(share=0.5), twin).detectors
    assert [bool(each.twin) for each in beside] == [True, False], "another program scored the poisoned pairs alone"
    other = record.model_copy(update={"detectors": [one.model_copy(update={"title": "y"})]})
    with pytest.raises(UserError, match="was not scored by y; detect there with the same detectors"):
        against_twin(other, Budget(share=0.5), twin)
    with pytest.raises(UserError, match="has no scores of its pairs; detect there first"):
        against_twin(record, Budget(share=0.5), tmp_path)


class Damaged:
    """Five pairs, of which some can't be decoded."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 5

    def sample(self, row: int) -> int:
        return row % 5

    def stored(self, samples: list[int]) -> list[int]:
        return samples

    def first(self, sample: int, body: int | None = None) -> tuple[np.ndarray, str]:
        assert body in (None, sample)
        if sample in self.bad:
            raise DecodeError("cut short")
        return np.full((3, 2, 2), sample, np.uint8), str(sample)

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[int(text)] for text in texts])


def test_a_pair_that_cannot_be_decoded_is_stood_for_by_the_next() -> None:
    pairs: Any = Damaged({1, 2, 4})
    block = Blocks(pairs)[0, 5]
    assert block.images[:, 0, 0, 0].tolist() == block.tokens[:, 0].tolist() == [0, 3, 3, 3, 0]
    assert block.replaced == [False, True, True, False, True]
    pairs.bad = set(range(5))
    with pytest.raises(UserError, match="none of the pairs can be decoded; check the shards"):
        Blocks(pairs)[0, 1]


def test_ranks_share_whole_blocks_and_pages() -> None:
    for ranks, pairs, width, block in (
        (1, 192, 16, 64),
        (3, 192, 16, 64),
        (2, 1000, 512, 5),
        (3, 1000, 16, 5),
        (7, 3, 8, 4),
    ):
        parts = [own_blocks(World(rank, ranks, 0, 1, torch.device("cpu")), pairs, width, block) for rank in range(ranks)]
        assert [row for part in parts for row in part] == list(range(pairs))
        assert all(part.start % block == 0 and part.start * width * 4 % 4096 == 0 for part in parts if len(part))


def test_what_the_command_refuses(study: Path, tmp_path: Path) -> None:
    for text in ("share=2", "count=x", "share", "outlier=-1", "=", "share=nan"):
        with pytest.raises(UserError, match="is no budget; give share=0.01"):
            budget_of(text)
    assert budget_of("count=5") == Budget(count=5)
    with pytest.raises(UserError, match="is no run's folder: it has no spec.json"):
        study_of(Namespace(spec=None, run=tmp_path, set=[]))
    home = home_of(study, "pretrain")
    alone = tmp_path / home.name
    alone.mkdir()
    (alone / "spec.json").write_bytes((home / "spec.json").read_bytes())
    with pytest.raises(UserError, match="has no study.json; give a run where its study left it"):
        study_of(Namespace(spec=None, run=alone, set=[]))
    with pytest.raises(ValidationError):
        Budget(share=1.0)


def test_a_twin_is_that_of_the_run_and_finished(spec: Path, tmp_path: Path) -> None:
    planned = {run.folder: run for run in runs(load(spec, ["sweep={seed: [1, 2]}", "attack.twin=each"]).points, "pretrain")}
    first, second, own, other = planned.values()
    assert [run.stage for run in planned.values()] == ["pretrain", "pretrain", "twin", "twin"]
    for run, given in ((first, other), (second, own), (own, own), (first, first)):
        with pytest.raises(UserError, match=r"give a poisoned run, and its untouched twin") as caught:
            twin_of(run, tmp_path / given.folder, planned, tmp_path)
        assert (run.untouched.folder in str(caught.value).partition(";")[2]) == (run.stage == "pretrain")
    with pytest.raises(UserError, match=f"{own.folder} is not finished; carry out its study first"):
        twin_of(first, tmp_path / own.folder, planned, tmp_path)


def test_a_twin_that_is_scored_as_asked_is_not_scored_again(study: Path) -> None:
    home, twin = home_of(study, "pretrain"), home_of(study, "twin")
    before = (twin / DetectionJson.FILE).stat()
    done = command(study, 1, "--run", str(home), "--twin", str(twin))
    assert done.returncode == 0, done.stderr
    assert "% of the twin's at the same threshold" in done.stdout
    assert (twin / DetectionJson.FILE).stat().st_mtime_ns == before.st_mtime_ns
