"""What a report tells apart: ways of pre-training whatever an axis is called, a model's several attacks, runs that ended
and runs that are missing, seeds whose cleanings diverged, studies of one name."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import samples
import torch
from submissions import ATTACK, CLEANERS, submission

from data.refusal import Diverged, UserError
from engine.distributed.world import World
from engine.evaluation.evaluate import judged
from engine.training.bad_samples import BadBatches
from engine.training.finite import refuse_not_finite
from measures.contract import NotFinite
from records.ending import FailedJson, PrunedJson
from records.json_file import DIGEST, write_json
from records.lines import parted, seal
from records.manifest import BadSteps
from report.__main__ import main
from report.figures import figures
from report.load import read_study
from report.markdown import write_markdown
from report.pretrainings import by_way
from report.scores import BEST, scores
from report.submission import open_study, read_submission, write_packed
from report.verdict import Report, make_report

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
ONE: dict[str, Any] = {"cleaners": {"CleanCLIP": CLEANERS["CleanCLIP"]}, "rates": (1e-3,)}


def plan_of(study: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study / "study.json").read_text())
    return {name: value for name, value in content.items() if name != DIGEST}


def cleanings(study: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for home in sorted(study.glob("clean-*")):
        yield home, json.loads((home / "spec.json").read_text())


@pytest.mark.parametrize("axis", ["captions", "clean_captions", "cleaner2", "measured", "machines", "data.pretrain.caption"])
@pytest.mark.parametrize("moved", ["left", "right"])
def test_two_ways_of_pretraining_are_two_whatever_their_axis_is_called(tmp_path: Path, axis: str, moved: str) -> None:
    study, runs = tmp_path / "s", list[dict[str, Any]]()
    for value, left, poison in (("own", 0.9, 400), ("alt", 0.4, 800)):
        attack = {**ATTACK, "poison": {"count": poison, "fraction": None}}
        submission(study, left=left, attack=attack, twin=False, **ONE)
        for run in plan_of(study)["runs"]:
            runs.append({**run, "swept": {axis: value, "seed": run["seed"], "attack.trigger.seed": run["seed"]}})
    for run in runs:
        run["cleaning"] = [] if moved == "left" else ["cleaner"]
    write_json(study / "study.json", {"name": "s", "runs": runs, "spec": {}})
    report = make_report(read_study(study))
    assert [(panel.title, len(panel.starts)) for panel in report.judged.panels] == [
        (f"MMCL · {'.'.join(axis.split('.')[-2:])}={value}", 3) for value in ("own", "alt")
    ]
    (difference,) = report.judged.differences
    assert difference.value == pytest.approx(0.5)


@pytest.mark.parametrize("axis", ["clean.epochs", "data.clean.pairs", "measure.images", "machine.micro_batch", "seed"])
def test_settings_of_others_than_the_pretraining_make_no_way(tmp_path: Path, axis: str) -> None:
    study = submission(tmp_path / "s", twin=False, **ONE)
    runs = [{**run, "swept": {axis: at}} for at, run in enumerate(plan_of(study)["runs"])]
    write_json(study / "study.json", {"name": "s", "runs": runs, "spec": {}})
    assert [panel.title for panel in make_report(read_study(study)).judged.panels] == ["MMCL"]


def with_second_attack(study: Path) -> None:
    """Every evaluation tells of a second attack too, whose ASR is the square of the first's."""
    for path in study.glob("*/metrics.jsonl"):
        text, last = "", ""
        for line in path.read_bytes().splitlines():
            row = json.loads(parted(line)[0])
            row |= {"asr_2": row["asr"] ** 2, "others_2": 900, "asr_floor_2": 0.001}
            sealed, last = seal(json.dumps(row), last)
            text += sealed
        path.write_text(text)
        end = path.with_name("finished.json")
        write_json(end, {**json.loads(end.read_text()), "journal": path.stat().st_size})


@pytest.mark.parametrize(
    ("objectives", "pairs"), [(["mmcl"], 0), (["mmcl", "mmcl_ssl"], 2), (["mmcl", "slip", "siglip"], 6)]
)
def test_attacks_that_the_same_models_carry_are_no_groups_to_compare(
    tmp_path: Path, objectives: list[str], pairs: int
) -> None:
    attack = {**ATTACK, "also": [{"target": "crane", "trigger": {"kind": "blend"}, "poison": {"count": 400}}]}
    study = submission(tmp_path / "s", objectives=objectives, attack=attack, **ONE)
    with_second_attack(study)
    report = make_report(read_study(study))
    assert len(report.judged.panels) == 2 * len(objectives)
    found = report.judged.differences
    assert len(found) == pairs
    told = [note for note in report.judged.notes if "pairs of ways of pre-training are compared, each by itself" in note]
    assert [note.split()[0] for note in told] == ([str(pairs)] if pairs > 1 else [])
    assert all(first.partition(" · ")[2] == second.partition(" · ")[2] for one in found for first, second in [one.ways])
    drawn = {figure.name for figure in figures(report)}
    assert ("pretrainings" in drawn) == (len(objectives) > 2)


def test_what_sweep_stop_ended_is_not_missing(tmp_path: Path) -> None:
    study = submission(tmp_path / "s")
    for home, spec in cleanings(study):
        if spec["clean"]["optimizer"]["rate"] < 1e-3:
            (home / "finished.json").unlink()
            write_json(home / PrunedJson.FILE, samples.pruned())
    report = make_report(read_study(study))
    assert not any("So far" in sentence for sentence in report.judged.sentences)
    assert report.notes[0] == "6 of 18 runs were stopped early by sweep.stop."
    assert not any("missing" in note for note in report.notes)
    assert [row.number for row in report.summaries[0] if row.what == "cleaning runs"] == ["12 of 12 ended"]
    assert sum(record.state.startswith("stopped early by sweep.stop: ") for record in report.study.records) == 6
    write_packed(study, tmp_path / "s.tar.xz")
    assert make_report(open_study(tmp_path / "s.tar.xz")).judged.sentences == report.judged.sentences


def failed(study: Path, which: tuple[str, ...], seeds: tuple[int, ...], diverged: bool) -> None:
    """The cleanings of MMCL+SSL models by these cleaners, of these seeds, came to nothing beyond epoch 0."""
    for home, spec in cleanings(study):
        if (
            spec["pretrain"]["objective"]["kind"] == "mmcl_ssl"
            and spec["seed"] in seeds
            and spec["clean"]["objective"]["kind"] in which
        ):
            (home / "finished.json").unlink()
            path = home / "metrics.jsonl"
            path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
            FailedJson.now("the loss was not finite", diverged).write(home)


def of_cleaner(report: Report, cleaner: str) -> dict[str, Any]:
    return {way: means[BEST.name] for (way, who), means in report.judged.means.items() if who == cleaner}


@pytest.mark.parametrize("diverged", [True, False])
def test_a_seed_whose_cleanings_all_diverged_is_counted_and_another_failure_is_not(tmp_path: Path, diverged: bool) -> None:
    study = submission(tmp_path / "s", seeds=range(5), objectives=("mmcl", "mmcl_ssl"))
    failed(study, ("mmcl",), (3, 4), diverged)
    report = make_report(read_study(study))
    mean = of_cleaner(report, "fine-tuning")["MMCL+SSL"]
    assert (mean.known, mean.of) == ((3, 5) if diverged else (3, 3))
    assert (of_cleaner(report, "CleanCLIP")["MMCL+SSL"].known, of_cleaner(report, "fine-tuning")["MMCL"].of) == (5, 5)
    (one,) = [one for one in report.judged.differences if one.cleaner == "fine-tuning"]
    assert (one.counted is not None) == diverged
    if diverged:
        assert one.counted is not None
        assert one.counted.value == pytest.approx(0.902 - (0.900 + 0.901 + 0.902) / 5)
        assert "5 of 5 and 3 of 5 seeds reach that ASR, and only those are compared" in one.sentence
        told = "4 of 60 runs failed, 4 of them since their numbers were not finite any more."
        said = {row.what: row.remark for row in report.summaries[1]}
        assert "3 of 5 seeds" in said["fine-tuning: best top-1 at ASR ≤ 5 %"]
    else:
        told = "4 of 60 runs failed."
    assert report.notes[0] == told


@pytest.mark.parametrize(
    ("seeds", "status", "words"),
    [((2,), "partly", "Every cleaning of 1 seed diverged."), ((0, 1, 2), "open", "Every cleaning of 3 seeds diverged.")],
)
def test_a_seed_of_which_every_cleaner_diverged_is_told_in_the_verdict(
    tmp_path: Path, seeds: tuple[int, ...], status: str, words: str
) -> None:
    study = submission(tmp_path / "s", objectives=("mmcl_ssl",))
    failed(study, ("mmcl", "cleanclip"), seeds, True)
    (verdict,) = make_report(read_study(study)).judged.verdicts
    assert verdict.status == status
    assert words in verdict.sentence
    before = json.loads(next(iter(study.glob("*/failed.json"))).read_text())
    assert before["diverged"] is True


def test_a_seed_of_which_a_cleaner_is_still_to_come_is_not_lost(tmp_path: Path) -> None:
    study = submission(tmp_path / "s", objectives=("mmcl_ssl",))
    failed(study, ("mmcl",), (2,), True)
    for home, spec in cleanings(study):
        if spec["seed"] == 2 and spec["clean"]["objective"]["kind"] == "cleanclip":
            shutil.rmtree(home)
    report = make_report(read_study(study))
    (panel,), (verdict,) = report.judged.panels, report.judged.verdicts
    assert ([(one.objective, one.seed) for one in panel.diverged], panel.lost) == ([("fine-tuning", 2)], frozenset())
    assert "diverged" not in verdict.sentence
    said = {row.what: row.remark for row in report.summaries[0]}
    assert said["best top-1 at ASR ≤ 1, 5, 10, 20 %"].endswith("mean of 2 seeds")
    assert said["fine-tuning: best top-1 at ASR ≤ 5 %"].endswith("mean of 2 of 3 seeds")


def test_every_table_and_figure_counts_seeds_that_diverged(tmp_path: Path) -> None:
    study = submission(tmp_path / "s", seeds=range(5), objectives=("mmcl", "mmcl_ssl"))
    plan = plan_of(study)
    for run in plan["runs"]:
        if run["stage"] == "clean":
            epochs = {"clean.epochs": 3, "data.clean.pairs": 400}
            run |= {"swept": {**run["swept"], **epochs}, "cleaning": ["cleaner", *epochs]}
    write_json(study / "study.json", plan)
    failed(study, ("mmcl",), (3, 4), True)
    report = make_report(read_study(study))
    rule = {key: means["chosen_by_accuracy_top1"] for key, means in report.judged.means.items()}
    assert (rule["MMCL+SSL", "fine-tuning"].known, rule["MMCL+SSL", "fine-tuning"].of) == (3, 5)
    assert not any("'accuracy' is left out" in note for note in report.judged.notes)
    assert [len(at) for at in by_way(report.judged.panels)["fine-tuning"].values()] == [5, 5]
    apart = scores([panel.only(lambda info: info.swept.get("clean.epochs") == 3) for panel in report.judged.panels])
    assert len([one for one in apart if one.group == ("MMCL+SSL", "fine-tuning")]) == 3, (
        "of which setting they are is not told"
    )
    assert main([str(study)]) == 0
    assert (study / "report/index.html").is_file()
    assert main([str(study), "--markdown", str(tmp_path / "page.md")]) == 0
    rows = [
        line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| MMCL+SSL | fine-tuning |")
    ]
    assert sum(row.count("| none | none |") for row in rows) == 2


def test_what_is_not_finite_any_more_is_said_to_have_diverged(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        refuse_not_finite({"a": torch.tensor([torch.nan])}, "its end", "lower the rate", Diverged)
    with pytest.raises(UserError) as raised:
        refuse_not_finite({"a": torch.tensor([torch.nan])}, "x.pt", "give another")
    assert not isinstance(raised.value, Diverged)
    for refuse, given in (("refuse", (3, 3)), ("refuse_end", (5,))):
        with pytest.raises(Diverged):
            getattr(BadBatches(tmp_path, ALONE, BadSteps(in_a_row=3, total=3)), refuse)(*given)
    with pytest.raises(Diverged), judged("runs/x"):
        raise NotFinite("its pictures' embeddings are not finite")


def test_two_studies_of_one_name_are_not_one_section(tmp_path: Path) -> None:
    first, second = (submission(tmp_path / at, name="demo", seeds=(0,), **ONE) for at in "ab")
    with pytest.raises(UserError, match="hold studies of one name, demo"):
        write_markdown([first, second], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_no_study_can_write_over_anothers_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("report.markdown.figures", lambda report: [])
    good, evil = (submission(tmp_path / name, name=name, seeds=(0,), **ONE) for name in ("good", "evil"))
    write_json(evil / "study.json", {**plan_of(evil), "command": "## good"})
    page = tmp_path / "page.md"
    write_markdown([good, evil], page)
    before = page.read_text()
    write_markdown([evil], page)
    assert page.read_text() == before
    assert [line for line in before.splitlines() if line.startswith("#")] == ["# Results", "## good", "## evil"]
    page.write_text(before + "\n## good\n\nwritten by hand\n")
    with pytest.raises(UserError, match="two sections '## good'"):
        write_markdown([evil], page)


@pytest.mark.parametrize(
    ("swept", "cleaning", "words"),
    [
        ({"clean.epochs": 3}, ["clean.epochs"], ""),
        ({"clean.epochs": 77}, ["clean.epochs"], "says clean.epochs 77 of clean-"),
        ({"data.clean.pairs": 12345}, [], "whose spec.json says 400"),
        ({"pretrain.objective": {"kind": "slip"}}, [], "whose spec.json says 'mmcl'"),
        ({"pretrain.objective": {"kind": "mmcl", "within": 2}}, [], ""),
        ({"pretrain.epochs": True}, [], "whose spec.json says 2"),
        ({"pretrain.objective": "mmcl", "data.nowhere": 3, "its own": 4}, [], ""),
        ({"pretrain.epochs": 2}, ["pretrain.epochs"], "that pretrain.epochs concerns its cleaning alone"),
    ],
)
def test_a_study_that_says_other_settings_than_its_specs_is_refused(
    tmp_path: Path, swept: dict[str, Any], cleaning: list[str], words: str
) -> None:
    study = submission(tmp_path / "s", seeds=(0,), **ONE)
    plan = plan_of(study)
    plan["runs"][-1] |= {"swept": swept, "cleaning": cleaning}
    write_json(study / "study.json", plan)
    if not words:
        assert read_submission(study).study.plan.name == "s"
        return
    with pytest.raises(UserError, match=words):
        read_submission(study)


@pytest.mark.parametrize(("bound", "value"), [("LARGEST", 5000), ("LARGEST_PACKED", 500), ("MOST", 3)])
def test_what_could_not_be_read_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    study = submission(tmp_path / "s", seeds=(0,), **ONE)
    monkeypatch.setattr(f"report.packed.{bound}", value)
    with pytest.raises(UserError, match="is too large to pack"):
        write_packed(study, tmp_path / "s.tar.xz")
    assert not (tmp_path / "s.tar.xz").exists()
