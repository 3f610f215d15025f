"""After the cleaning: which model is probed, by which runs, and what a report makes of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import submissions
import torch
from conftest import antidote, journals, settings

from configs.after import Perturbation
from configs.plan import Run, runs
from configs.spec import Loaded, load
from configs.start import Line, Rounded, Start
from data.loader import Workers
from data.refusal import UserError
from engine.distributed.world import World
from engine.estimate.dry_run import still_to_come
from engine.models import clip
from engine.models.transforms.contract import CleanPairs, TransformInputs
from engine.models.transforms.registry import build as build_transform
from engine.models.transforms.rounded import by_rows
from engine.persistence.choice import chosen, groups
from engine.persistence.perturbation import shifted, universal
from engine.persistence.probes import prospects
from engine.study.scheduler import Scheduler
from records.digests import file_digest
from records.ending import FinishedJson
from records.json_file import write_json
from records.perturbation import PerturbationJson, Perturbed
from records.rows import MeasureRow
from records.study_json import RunEntry
from report.figures import figures
from report.load import read_study
from report.persistence import (
    COLUMNS,
    HEADS,
    Probed,
    Rates,
    fewest,
    first_at,
    numbers_of_all,
    pairs_to_half,
    persistence_rows,
    probed,
    sentences,
    table,
    without_choice,
)  # fmt: skip
from report.plots.rebound import line, rebound
from report.submission import read_submission
from report.verdict import make_report

AFTER = settings(
    "after={optimizer: {rate: 1.0e-4}, cap: 1.0, retune: [5, 0, 1], line: 3, epochs: 1}",
    "attack.twin=first",
    "attack.clean_twin=true",
)
SETS = AFTER[1::2]
RATES = "sweep={clean.optimizer.rate: [1.0e-5, 1.0e-4, 1.0e-3]}"


def end(run: Run, study: Path, *rates: tuple[float, float], **numbers: float) -> None:
    """Leaves a run's folder as if it had come to its end with these (top-1, ASR) after each epoch from 0 on."""
    folder = study / run.folder
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_text(run.folder)
    rows = [
        {"kind": "measure", "epoch": epoch, "step": epoch, "images": "tiny", "top1": top1, "asr": asr, **numbers}
        | {"pictures": 1000, "others": 900, "classes": 32, "asr_floor": 0.0}
        for epoch, (top1, asr) in enumerate(rates)
    ]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(body)
    digest = file_digest(folder / "weights.safetensors")
    FinishedJson(seconds=1, steps=1, journal=len(body), weights=digest, measured=run.measured).write(folder)


def ended_study(spec: Path, tmp_path: Path, *more: str) -> tuple[Loaded, Path, list[Run]]:
    """A study whose pre-training, twin and cleanings have ended: the poisoned model's cleanings are better and better in
    top-1, the last of them above ASR 5 %."""
    loaded, study = load(spec, [*SETS, RATES, *more]), tmp_path / "study"
    every = runs(loaded.points)
    for run in every:
        if run.stage != "clean":
            end(run, study, (0.1, 0.0), (0.8, 0.9 if run.stage == "pretrain" else 0.01))
    for at, run in enumerate(run for run in every if run.stage == "clean" and not run.of_twin):
        end(run, study, (0.8, 0.9), (0.5 + 0.1 * at, (0.01, 0.04, 0.3)[at]), distance=0.1 * at)
    for run in every:
        if run.of_twin:
            end(run, study, (0.8, 0.01), (0.7, 0.02))
    return loaded, study, every


def test_the_oracle_chooses_by_the_ends_that_have_weights_and_a_rule_without_asr_may_choose_another(
    spec: Path, tmp_path: Path
) -> None:
    loaded, study, every = ended_study(spec, tmp_path)
    (members,) = groups(every).values()
    assert [run.settings.optimizer.rate for run in members] == [1e-5, 1e-4, 1e-3]
    section = loaded.spec.after
    assert section is not None
    by = {
        rule: section.model_copy(update={"choose": rule, "cap": 0.05})
        for rule in ("oracle", "accuracy", "distance", "proxy")
    }
    picked = {rule: chosen(members, study, one) for rule, one in by.items()}
    assert picked == {"oracle": members[1], "accuracy": members[2], "distance": None, "proxy": None}
    assert chosen(members, study, by["oracle"].model_copy(update={"cap": 0.0})) is None
    (study / members[1].folder / "weights.safetensors").unlink()
    assert chosen(members, study, by["oracle"]) == members[0]


def test_probes_come_in_when_the_cleanings_of_a_start_and_their_twins_have_ended(spec: Path, tmp_path: Path) -> None:
    loaded, study, every = ended_study(spec, tmp_path, "after.cap=0.05")
    cleaned = [run for run in every if run.stage == "clean" and not run.of_twin][1]
    twin = next(run for run in every if run.of_twin and run.swept == cleaned.swept)
    scheduler = Scheduler.of(loaded, study, None)
    found = [run for run in scheduler.runs if run.after is not None]
    assert scheduler.runs[: len(every)] == every
    own, twins = (
        {"path": str(study / run.folder), "digest": file_digest(study / run.folder / "weights.safetensors")}
        for run in (cleaned, twin)
    )
    told = [(run.after.kind, run.after.amount, run.after.twin) for run in found if run.after]
    tuned = [("retune", pairs, of_twin) for of_twin in (False, True) for pairs in (0, 1, 5)]
    line = [("line", share, False) for share in (0.0, 0.5, 1.0)]
    others = [("int8", None, False), ("bf16", None, False), ("average", None, False)]
    assert told == [*tuned, *line, *others, ("perturb", None, False), ("perturb", None, True)]
    for run in found:
        assert run.after is not None
        start = run.settings.start
        assert start is not None
        assert start.model_dump(exclude_none=True) == (twins if run.after.twin else own)
        assert run.settings.epochs == (run.after.kind == "retune")
        assert run.spec.data.clean.leftover == (run.after.amount or None if run.after.kind == "retune" else None)
        assert run.entry().start == (twin if run.after.twin else cleaned).folder
        assert run.entry().after == run.after
        assert run.entry().pretrain_objective == "mmcl"
        assert "path" not in run.decides["clean"]["start"]
    assert len({run.folder for run in found}) == len(found)
    assert Scheduler.of(loaded, study, "pretrain").runs == every[:2]
    (study / twin.folder / "finished.json").unlink()
    assert Scheduler.of(loaded, study, None).runs == every, "the chosen model's twin is still being cleaned"


def test_a_process_that_waits_takes_a_probe_as_soon_as_there_is_one(spec: Path, tmp_path: Path) -> None:
    loaded, study, every = ended_study(spec, tmp_path)
    last = [run for run in every if not run.of_twin][-1]
    kept = (study / last.folder / "finished.json").read_bytes()
    (study / last.folder / "finished.json").unlink()
    scheduler = Scheduler.of(loaded, study, None)
    assert scheduler.runs == every
    (study / last.folder / "finished.json").write_bytes(kept)
    got = scheduler.next()
    assert not isinstance(got, str)
    assert got[0].after is not None
    got[1].release()


def test_specs_without_the_section_are_known_as_before(spec: Path) -> None:
    plain, probing = load(spec, SETS[1:]), load(spec, SETS)
    assert "after" not in plain.spec.model_dump()
    assert [run.folder for run in runs(plain.points)] == [run.folder for run in runs(probing.points)]
    entry = runs(plain.points)[-1].entry()
    assert "after" not in entry.model_dump()
    assert RunEntry.model_validate(entry.model_dump()) == entry


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["attack.clean_twin=false"], "set attack.twin to each, or to first for one pre-training, and attack.clean_twin to"),
        (["clean=null", "attack.clean_twin=false"], "after probes cleaned models, but there is no clean section"),
        (["after.retune=[65]"], "after.retune asks for 65 poisoned pairs among 64 in all; lower it, or raise pairs"),
        (["data.clean.pairs=null"], "after.pairs is missing, and data.clean.pairs too"),
        (["measure=[{kind: zero_shot, images: tiny}]"], "after.perturb looks at pictures with the trigger, but no measure"),
        (["after.perturb={eps: []}"], "after.perturb.eps: is []; expected a list of at least 1"),
        (["after.line=1"], "line is 1, but it has two ends; give at least 2 points, or 0 for none"),
        (["after.retune=[-1]"], "after.retune.0: is -1; expected a whole number of at least 0"),
        (["after.formats=[int4]"], "after.formats.0: is 'int4'; expected 'int8' or 'bf16'"),
        (["after.optimizer.state=inherited"], "optimizer.state is inherited, but cleanings keep no moments; use fresh"),
        (["sweep={after.epochs: [1, 2]}"], "no field 'after.epochs'; it can't be swept"),
        (["clean.transform={kind: line, to: {pretrained: openai}}"], "to names weights by open_clip's tag; give a path"),
    ],
)  # fmt: skip
def test_what_can_not_be_probed_is_refused_in_a_sentence(spec: Path, more: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(spec, [*SETS, *more])
    assert words in str(caught.value)


def test_a_tuning_is_looked_at_before_any_training(spec: Path, tmp_path: Path) -> None:
    done = antidote("--spec", str(spec), *AFTER, *settings("after.retune=[13]"), "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "after.retune asks for 13 poisoned pairs, but the attack poisons 12" in done.stderr
    loaded = load(spec, SETS)
    (words,) = still_to_come(loaded, runs(loaded.points))
    assert words.startswith("of each of 1 starts and cleaners a cleaned model is probed when its cleanings have ended")
    (tuning,) = [one for run in runs(loaded.points) for one in prospects(run)]
    assert tuning.spec.data.clean.leftover == 5
    assert tuning.settings.start is None


def test_weights_on_a_line_and_in_other_formats_by_hand(tmp_path: Path) -> None:
    """A row whose largest is 127 is rounded to whole numbers, one of zeros stays; the ends of a line are models."""
    rows = by_rows(torch.tensor([[127.0, 1.4, -0.6], [0.0, 0.0, 0.0], [-2.54, 0.031, 0.0]]))
    assert rows[:2].tolist() == [[127, 1, -1], [0, 0, 0]]
    assert rows[2].tolist() == pytest.approx([-2.54, 0.04, 0])
    from safetensors.torch import save_file

    one, other = clip.build("test-resnet", 0), clip.build("test-resnet", 1)
    for norm in other.norms:
        norm.running_mean += 2.0
    save_file(
        clip.weights(other, {"scale": torch.tensor([4.0])}), tmp_path / "b.safetensors", other.normalization.metadata()
    )
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    inputs = TransformInputs("test-resnet", 3, {}, CleanPairs([], 1, Workers(0), 1, 1), alone)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in one.clip.state_dict().items()}
    for share, scale in ((0.0, 2.0), (1.0, 4.0), (0.25, 2.5)):
        one.clip.load_state_dict(before)
        section = Line(kind="line", to=Start(path=str(tmp_path / "b.safetensors")), share=share)
        scalars, _ = build_transform(section)(one, {"scale": torch.tensor([2.0])}, inputs)
        assert scalars["scale"].item() == scale
        for name, value in one.clip.state_dict().items():
            there = other.clip.state_dict()[name]
            if share in (0.0, 1.0):
                assert torch.equal(value, there if share and value.is_floating_point() else before[name]), name
            elif value.is_floating_point():
                assert torch.allclose(value, 0.75 * before[name] + 0.25 * there, atol=1e-6), name
    one.clip.load_state_dict(before)
    build_transform(Rounded(kind="rounded", format="bf16"))(one, {}, inputs)
    for name, parameter in one.clip.named_parameters():
        assert torch.equal(parameter, before[name].bfloat16().float())
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"b.safetensors is no whole safetensors file .*; copy it again"):
        build_transform(section)(one, {}, inputs)


def probed_study(spec: Path, tmp_path: Path) -> Path:
    """The same study with its probes ended: the cleaned model relearns from one pair, its twin from five."""
    loaded, study, _ = ended_study(spec, tmp_path, "after.cap=0.05")
    scheduler = Scheduler.of(loaded, study, None)
    asr: dict[Any, float] = {
        ("retune", 0, False): 0.1, ("retune", 1, False): 0.5, ("retune", 5, False): 0.8,
        ("retune", 0, True): 0.0, ("retune", 1, True): 0.1, ("retune", 5, True): 0.6,
        ("line", 0, False): 0.04, ("line", 0.5, False): 0.25, ("line", 1, False): 0.9,
    }  # fmt: skip
    for run in scheduler.runs:
        if run.after is not None:
            rate = asr.get((run.after.kind, run.after.amount, run.after.twin), 0.05)
            end(run, study, (0.6, 0.04), *([(0.6, rate)] if run.settings.epochs else []))
            if not run.settings.epochs:
                shutil.rmtree(study / run.folder)
                end(run, study, (0.6, rate))
            if run.after.kind == "perturb":
                fooled = [Perturbed(eps=eps, clean=eps / 100, triggered=eps / 20) for eps in (0, 4, 8)]
                found = PerturbationJson(images="tiny", pictures=30, fooled=tuple(fooled))
                found.write(study / run.folder)
    scheduler.write_study_json("python engine/run.py")
    return study


def test_rebound_pairs_to_half_and_the_advantage_over_the_twin_by_hand(spec: Path, tmp_path: Path) -> None:
    """Start 0.9, so half is 0.45; before 0.04, twin before 0.02. Rebounds 0.46 and 0.76, the twin's 0.08 and 0.58: advantage
    (0.38 + 0.18) / 2 = 0.28. On the line 0.25 at 0.5 and 0.9 at 1: 0.45 at 0.5 + 0.5 x 0.2 / 0.65 = 0.6538."""
    study = read_study(probed_study(spec, tmp_path))
    assert all(record.run.after is None for record in study.records)
    (one,) = probed(study)
    assert (one.start, one.before.asr, one.twin_before and one.twin_before.asr) == (0.9, 0.04, 0.02)
    assert one.group == ("MMCL", "CleanCLIP")
    assert fewest(one.half, one.tuned) == 1
    assert fewest(one.half, one.twin_tuned) == 5
    assert fewest(0.9, one.tuned) is None
    assert one.advantage == pytest.approx(0.28)
    assert one.a50 == pytest.approx(0.5 + 0.5 * 0.2 / 0.65)
    assert first_at(0.04, {0.0: 0.04, 1.0: 0.9}) == 0
    assert first_at(0.95, {0.0: 0.04, 1.0: 0.9}) is None
    ((group, cells),) = persistence_rows([one])
    assert group == one.group
    faint = "4/255: 20.0 %, 4.0 %; 8/255: 40.0 %, 8.0 %"
    assert cells == ["90.0 %, 4.0 %, 10.0 %", "1", "5", "28.0", "0.65", "5.0 %, 5.0 %", "5.0 %", "not run", faint, faint]
    (said,) = sentences([one])
    assert said.startswith("Tuned with 5 poisoned pairs, the MMCL model cleaned by CleanCLIP goes from ASR 4.0 % to 80.0 %")
    assert said.endswith("its twin to 60.0 %.")
    columns, rows = table([one])
    assert columns == COLUMNS
    assert {(row["amount"], row["twin"]): row["rebound"] for row in rows if row["probe"] == "retune"} == pytest.approx(
        {(0, 0): 0.06, (1, 0): 0.46, (5, 0): 0.76, (0, 1): -0.02, (1, 1): 0.08, (5, 1): 0.58}
    )
    report = make_report(study)
    drawn = [figure for figure in figures(report) if figure.name in ("rebound", "line", "perturbation")]
    assert [len(figure.draw(True).axes) for figure in drawn] == [1, 1, 1]
    assert [len(panel.points) for panel in report.judged.panels] == [3], "a probe is no cleaning"
    assert without_choice(study) is None
    assert "1 of 1 starts and cleaners no model" in str(without_choice(replace(study, probes=[])))
    lost = replace(study, probes=[record for record in study.probes if not (record.run.after and record.run.after.twin)])
    assert [one.advantage for one in probed(lost)] == [None]
    begun = next(record for record in study.records if record.run.stage == "pretrain")
    facts = {"pictures": 1000, "others": 900, "classes": 10, "asr_floor": 0.01, "top1": 0.8, "asr": 0.02}
    row = MeasureRow.model_validate({"kind": "measure", "epoch": 1, "step": 1, "images": begun.measures[-1].images, **facts})
    never = replace(study, records=[replace(one, measures=[row]) if one is begun else one for one in study.records])
    assert [(one.start, one.half) for one in probed(never)] == [(0.02, None)], "the start had no backdoor"


def rates(asr: float) -> Rates:
    return Rates(0.9, asr, "r")


def tuned(seed: int, own: dict[float, float], twin: dict[float, float], **more: Any) -> Probed:
    """A cleaned model of ASR 0.01, from a start of 1.0, and its ASR and its twin's by the number of pairs tuned with."""
    both = [{pairs: rates(asr) for pairs, asr in curve.items()} for curve in (own, twin)]
    facts = {"start": 1.0, "twin_before": rates(0.0) if twin else None, "tuned": both[0], "twin_tuned": both[1], **more}
    return Probed(("MMCL", "c"), seed, f"clean-{seed}", before=rates(0.01), **facts)


def test_means_over_seeds_are_of_the_numbers_that_all_were_tuned_with() -> None:
    """One seed has come to 1 pair, the other to 100; the third has no twin."""
    members = [tuned(1, {1: 0.03, 100: 0.99}, {1: 0.01, 100: 0.1}), tuned(2, {1: 0.02}, {1: 0.0}), tuned(3, {1: 0.04}, {})]
    assert [one.advantage for one in members] == [pytest.approx((0.01 + 0.88) / 2), pytest.approx(0.01), None]
    assert numbers_of_all(members) == [1]
    ((_, cells),) = persistence_rows(members)
    assert cells[HEADS.index("relearning advantage in points")] == "1.0 [1.0, 1.0] (2 of 3 seeds)"
    (said,) = sentences(members)
    assert said.startswith("Tuned with 1 poisoned pairs")
    assert said.endswith("goes from ASR 1.0 % to 2.5 %, its twin to 0.5 % (2 of 3 seeds).")
    assert sentences([tuned(1, {1: 0.5}, {1: 0.1}), tuned(2, {5: 0.5}, {5: 0.1})]) == [], "nothing was tried on both"


def test_without_a_backdoor_there_is_no_half_to_come_back_to() -> None:
    never = tuned(1, {0: 0.016, 1: 0.02}, {0: 0.01, 1: 0.01}, start=0.02, planted=False, line={0: rates(0.015)})
    weak = tuned(2, {0: 0.016, 1: 0.02}, {0: 0.01, 1: 0.01}, start=0.018, line={0: rates(0.01)})
    assert (never.half, never.a50) == (None, None)
    assert [pairs_to_half([one], False) for one in (never, weak)] == ["no backdoor at the start", "never below half"]
    assert pairs_to_half([weak], True) == "0", "clean tuning brought the twin there"
    ((_, cells),) = persistence_rows([never])
    assert cells[HEADS.index("share of the line to half")] == "none"
    assert len(rebound({"a": [never]}).axes) == len(line({"a": [never]}).axes) == 1


def test_perturbed_pictures_rebound_from_the_same_pictures_unchanged() -> None:
    of = {0.0: Perturbed(eps=0, clean=0.005, triggered=0.034), 16.0: Perturbed(eps=16, clean=0.1, triggered=0.5)}
    _, rows = table([tuned(1, {}, {}, perturbed=of, twin_perturbed={16.0: of[16.0]})])
    found = {(row["probe"], row["amount"], row["twin"]): row["rebound"] for row in rows if "perturbed" in row["probe"]}
    assert found == pytest.approx(
        {
            ("perturbed triggered", 0, 0): 0, ("perturbed clean", 0, 0): 0, ("perturbed triggered", 16, 0): 0.466,
            ("perturbed clean", 16, 0): 0.095, ("perturbed triggered", 16, 1): None, ("perturbed clean", 16, 1): None,
        }
    )  # fmt: skip


def test_a_submission_probes_what_its_specs_say(spec: Path, tmp_path: Path) -> None:
    """A cleaning said to be a probe would be in no verdict, a probe said to be none would be in it."""
    loaded, begun, _ = ended_study(spec, tmp_path, "after.cap=0.05")
    study, listed = tmp_path / "submitted", list[dict[str, Any]]()
    for run in Scheduler.of(loaded, begun, None).runs:
        facts = {"runs": listed, "facts": run.entry().model_dump()}
        submissions.run(study, run.stage, run.decides, [(0.5, 0.9), (0.5, 0.1)], facts)
        if run.after is None:
            ended, weights = FinishedJson.read(study / run.folder), file_digest(begun / run.folder / "weights.safetensors")
            assert ended is not None
            ended.model_copy(update={"weights": weights}).write(study / run.folder)

    def said(of: dict[str, Any], **changes: Any) -> str:
        changed = [{**entry, **changes} if entry is of else entry for entry in listed]
        write_json(study / "study.json", {"name": "s", "runs": changed})
        with pytest.raises(UserError) as error:
            read_submission(study)
        return str(error.value)

    write_json(study / "study.json", {"name": "s", "runs": listed})
    read = read_submission(study).study
    assert (len(read.records), len(read.probes)) == (8, 14)
    probe = next(entry for entry in listed if entry.get("after", {"twin": True})["twin"] is False)
    cleanings = [entry for entry in listed if entry["stage"] == "clean" and "after" not in entry]
    other = next(entry["run"] for entry in cleanings if entry["run"] != probe["start"])
    hidden = said(cleanings[0], after=probe["after"])
    assert f"says after {probe['after']} of {cleanings[0]['run']}, which starts from pretrain-" in hidden
    assert f"says after None of {probe['run']}, which starts from {probe['start']}" in said(probe, after=None)
    assert f"which starts from {probe['start']}" in said(probe, after={**probe["after"], "of": other})
    moved = said(probe, start=other, after={**probe["after"], "of": other})
    assert f"{probe['run']}/spec.json starts from other weights than those of {other}" in moved


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_probes_its_cleaned_model_and_its_ends_are_the_models_own(spec: Path, tmp_path: Path) -> None:
    """No step and no poisoned pair change nothing; a tuning done again gives the same rows; a study goes on amid probes."""
    words = ["--spec", str(spec), *AFTER, *settings("model.name=test-resnet", "model.norm_group=4")]
    done = antidote(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    study = tmp_path / "runs/tiny"
    entries = [RunEntry.model_validate(entry) for entry in json.loads((study / "study.json").read_text())["runs"]]
    first, rows = {}, journals(study)
    last = {entry.run: [row for row in rows[entry.run] if row["kind"] == "measure"][-1] for entry in entries}
    for entry in entries:
        if entry.after is not None:
            first[entry.after.kind, entry.after.amount, entry.after.twin] = entry
    cleaned = first["line", 0.0, False].after.of
    start = next(entry.start for entry in entries if entry.run == cleaned)

    def numbers(run: str) -> dict[str, Any]:
        return {name: value for name, value in last[run].items() if name not in ("epoch", "step", "distance")}

    assert numbers(first["line", 0.0, False].run) == numbers(cleaned)
    assert numbers(first["line", 1.0, False].run) == numbers(start)
    begun = [row for row in rows[first["retune", 5.0, False].run] if row["kind"] == "measure"][0]
    assert {**begun, **dict.fromkeys(("epoch", "step", "distance"))} == {
        **last[cleaned], **dict.fromkeys(("epoch", "step", "distance")),
    }  # fmt: skip
    for pairs in (0, 1, 5):
        for twin in (False, True):
            run = first["retune", float(pairs), twin].run
            assert sum(row["poisoned"] for row in rows[run] if row["kind"] == "step") == pairs
    assert "norms" in {kind for kind, *_ in first}
    for twin in (False, True):
        found = PerturbationJson.read(study / first["perturb", None, twin].run)
        assert found is not None
        assert [each.eps for each in found.fooled] == [0, 4, 8, 16]
        assert found.fooled[-1].clean >= found.fooled[0].clean
    assert (study / "report/persistence.csv").is_file()
    again = first["retune", 1.0, True].run
    for run in (again, first["line", 0.5, False].run):
        shutil.rmtree(study / run)
    done = antidote(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert journals(study) == rows


def test_a_universal_perturbation_of_a_linear_model_is_eps_times_the_sign_of_its_weights() -> None:
    """Rows (1, w.x / 1000), classes e1 and e2, e2 the target: every step goes along sign(w), and stays at eps; of eps 0
    nothing changes. Changed pictures stay within bytes."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(96, 160, (20, 3, 4, 4), generator=draw).to(torch.uint8)
    way = torch.randn(3, 4, 4, generator=draw)

    def encode(images: torch.Tensor, stamp: Any = None) -> torch.Tensor:
        along = ((images - 128) * way).sum((1, 2, 3)) / 1000
        return torch.stack([torch.ones_like(along), along], 1)

    targets, classes, cpu = torch.ones(20, dtype=torch.int64), torch.eye(2), torch.device("cpu")
    section = Perturbation(eps=(4,), steps=7, batch=8)
    change = universal(encode, pictures, classes, targets, 4, section, cpu)
    assert torch.equal(change, 4 * way.sign())
    assert not universal(encode, pictures, classes, targets, 0, section, cpu).any()
    moved = shifted(torch.full((1, 3, 4, 4), 254, dtype=torch.uint8), change)
    assert moved.max() == 255
    assert moved.min() == 250
