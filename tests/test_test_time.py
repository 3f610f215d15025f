"""What a report says of detectors at test time: tables, files and figures, from journals with made-up numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import samples

from report import markdown, write
from report.figures import figures
from report.load import read_study
from report.markdown import write_markdown
from report.page import page_of
from report.test_time import SHARES, Detection, detection_rows, detections, rejection_faults
from report.verdict import make_report
from report.write import write_report

FIGURES = {"test-time", "rejection"}


def told(tpr: float, asr: float, top1: float, **more: Any) -> dict[str, Any]:
    """The numbers of a detector `lorex` that finds so many, and of another that says nothing."""
    curve = [0.0, *([tpr] * 9), 1.0]
    numbers = {"auroc": 0.9, "tpr_fpr1": tpr, "tpr_fpr5": tpr, "tpr": tpr, "fpr": 0.01, "precision": 0.5}
    numbers |= {"asr": asr, "top1": top1, "roc": curve}
    whole = {f"lorex_{name}_{share}": value for name, value in numbers.items() for share in SHARES}
    return {**whole, "lorex_flagged": 0.02, "refused": {"bdet": "bdet says <nothing>"}, **more}


def study(folder: Path) -> Path:
    """Two seeds of a pre-training and a twin of one; each seed has a cleaning, whose second epoch is the best."""
    runs: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed, (tpr, after) in enumerate([(0.8, 0.2), (0.6, 0.4)]):
        facts = {"pretrain_objective": "mmcl", "seed": seed, "swept": {"seed": seed}}
        runs.append({"run": f"pretrain-{seed}", "stage": "pretrain", **facts})
        rows[f"pretrain-{seed}"] = [
            {"top1": 0.2, "asr": 0.1, **told(0, 0, 0)},
            {"top1": 0.8, "asr": 1.0, **told(tpr, after, 0.75)},
        ]
        runs.append(
            {"run": f"clean-{seed}", "stage": "clean", "start": f"pretrain-{seed}", "clean_objective": "cleanclip"} | facts
        )
        ends = [
            (0.8, 1.0, told(0, 0, 0)),
            (0.7, 0.5, told(0, 0, 0)),
            (0.72, 0.04, told(0.1, 0.03, 0.7)),
            (0.6, 0.01, told(0, 0, 0)),
        ]
        rows[f"clean-{seed}"] = [{"top1": top1, "asr": asr, **numbers} for top1, asr, numbers in ends]
    runs.append({"run": "twin-0", "stage": "twin", "pretrain_objective": "mmcl", "seed": 0, "swept": {"seed": 0}})
    rows["twin-0"] = [{"top1": 0.82, "asr": 0.001, **told(0.05, 0.0, 0.81)}]
    del rows["twin-0"][0]["lorex_precision_at1"]
    for run, lines in rows.items():
        (folder / run).mkdir(parents=True)
        whole = [{"kind": "measure", "step": at, "epoch": at, "images": "demo", **row} for at, row in enumerate(lines)]
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
        samples.end(folder / run)
    (folder / "study.json").write_text(json.dumps({"name": "s", "runs": runs}))
    return folder


def test_means_over_models_of_each_kind_by_hand(tmp_path: Path) -> None:
    read = read_study(study(tmp_path / "s"))
    found = {(one.model, one.detector, one.share): one for one in detections(read, make_report(read).judged.panels)}
    assert set(found) == {(m, d, s) for m in ("poisoned", "cleaned", "twin") for d in ("lorex", "bdet") for s in SHARES}
    poisoned, cleaned, twin = (found[kind, "lorex", "at1"] for kind in ("poisoned", "cleaned", "twin"))
    assert (poisoned.models, poisoned.before, poisoned.way) == (2, (1.0, 0.8), "MMCL")
    assert poisoned.after == pytest.approx((0.3, 0.75))
    assert poisoned.numbers["tpr"] == pytest.approx(0.7)
    assert poisoned.numbers["flagged"] == pytest.approx(0.02)
    assert poisoned.roc == pytest.approx((0, *([0.7] * 9), 1))
    assert (cleaned.models, cleaned.before, cleaned.after) == (2, pytest.approx((0.04, 0.72)), pytest.approx((0.03, 0.7)))
    assert (twin.models, "precision" in twin.numbers) == (1, False)
    silent = found["twin", "bdet", "at1"]
    assert (silent.numbers, silent.after, silent.refused) == ({}, None, "bdet says <nothing>")
    (row,) = detection_rows([twin])
    assert [text for text, _ in row[1]] == [
        *("twin", "lorex", "1 %", "0.900", "5.0 %", "5.0 %", "5.0 %", "1.0 %", "2.0 %", "none rejected"),
        *("0.1 % → 0.0 %", "82.0 % → 81.0 %"),
    ]


def test_a_detectors_numbers_are_of_one_set_and_of_the_models_that_it_was_measured_on(tmp_path: Path) -> None:
    """Numbers on a second set don't replace them; a model that it was refused on counts neither before nor after."""
    folder = study(tmp_path / "s")
    for seed, name in enumerate(("pretrain-0", "pretrain-1")):
        path = folder / name / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if seed == 0:
            other = {"top1": 0.5, "asr": 0.5, **told(0.01, 0.97, 0.4, lorex_auroc_at1=0.51)}
            rows.append({**rows[-1], "images": "elsewhere", **other})
        else:
            rows[-1] = {key: value for key, value in rows[-1].items() if "lorex" not in key}
            rows[-1] |= {"top1": 0.02, "asr": 0.1, "refused": {"lorex": "too few pictures"}}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        samples.end(path.parent)
    read = read_study(folder)
    every = detections(read, make_report(read).judged.panels)
    (one,) = [one for one in every if (one.model, one.detector, one.share) == ("poisoned", "lorex", "at1")]
    assert (one.models, one.of, one.before, one.after) == (1, 2, (1.0, 0.8), (0.2, 0.75))
    assert (one.numbers["auroc"], one.refused) == (0.9, "too few pictures")


def test_what_was_measured_on_other_pictures_before_is_told_nowhere(tmp_path: Path) -> None:
    """A set measured anew under its name: no row before it counts, at the last epoch neither, nor its answers."""
    folder = study(tmp_path / "s")
    path = folder / "pretrain-0/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["answers"] = [["a", "b", "a", "b"]]
    plain = {"kind": "measure", "step": 1, "epoch": 1, "images": "demo", "top1": 0.6, "asr": 0.9, "anew": True}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, plain]))
    samples.end(path.parent)
    read = read_study(folder)
    (record,) = [record for record in read.records if record.run.run == "pretrain-0"]
    assert [(row["epoch"], row["top1"]) for row in record.evaluations] == [(1, 0.6)]
    assert (len(record.measures), record.answers_at(1)) == (3, [])
    every = detections(read, make_report(read).judged.panels)
    (one,) = [one for one in every if (one.model, one.detector, one.share) == ("poisoned", "lorex", "at1")]
    assert (one.models, one.of) == (1, 2)


def test_a_cleaned_model_is_chosen_among_those_that_detectors_saw_and_the_others_are_counted(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    path = folder / "clean-0/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:3]:  # measured again at the end alone, as a run is that another study had finished
        for key in [key for key in row if "lorex" in key or key == "refused"]:
            del row[key]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples.end(path.parent)

    def cleaned() -> Detection:
        read = read_study(folder)
        every = detections(read, make_report(read).judged.panels)
        return next(one for one in every if (one.model, one.detector, one.share) == ("cleaned", "lorex", "at1"))

    one = cleaned()
    assert (one.models, one.of) == (2, 2)
    assert one.before == pytest.approx((0.025, 0.66))  # the last epoch of one, the best of the other
    assert one.ends["tpr"] == (0, 0.1)
    (row,) = detection_rows([one])
    assert [row[1][0], row[1][6]] == [("cleaned", "mean of 2"), ("5.0 %", "0.0 to 10.0")]
    path.write_text(
        "".join(json.dumps({k: v for k, v in r.items() if "lorex" not in k and k != "refused"}) + "\n" for r in rows)
    )
    samples.end(path.parent)
    one = cleaned()
    assert (one.models, one.of) == (1, 2)
    assert detection_rows([one])[0][1][0] == ("cleaned", "1 of 2 models")


def test_the_report_shows_them_in_table_file_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "figures", lambda report: [one for one in figures(report) if one.name in FIGURES])
    folder = study(tmp_path / "s")
    page = write_report(folder).page
    text = page.read_text()
    assert 'id="test-time"' in text
    assert "bdet says &lt;nothing&gt;" in text
    rows = list(csv.DictReader(page.with_name("test-time.csv").read_text().splitlines()))
    assert len(rows) == 12
    (row,) = (r for r in rows if (r["model"], r["detector"], r["triggered"]) == ("poisoned", "lorex", "50 %"))
    assert (float(row["asr_before"]), float(row["tpr"]), row["models"]) == (1.0, pytest.approx(0.7), "2")
    files = {path.name for path in page.parent.iterdir()}
    assert {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")} <= files
    monkeypatch.setattr(markdown, "figures", lambda report: [])
    write_markdown([folder], tmp_path / "page.md")
    assert "Detection at test time" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("rate", [1.2, -0.1, "all", None, [0.1]])
def test_a_false_positive_rate_without_triggers_is_a_share(tmp_path: Path, rate: object) -> None:
    folder = study(tmp_path / "s")
    path = folder / "twin-0/metrics.jsonl"
    (row,) = (json.loads(line) for line in path.read_text().splitlines())
    path.write_text(json.dumps({**row, "lorex_flagged": rate, "mine_flagged": rate}) + "\n")
    samples.end(path.parent)
    every = [(record.run.run, fault) for record in read_study(folder).records for fault in rejection_faults(record)]
    told = [(run, fault) for run, fault in every if "flagged" in fault]
    assert told == [("twin-0", f"says at epoch 0 lorex_flagged {rate}, which is no share")]


def test_a_study_without_detectors_says_nothing_of_them(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    for path in folder.glob("*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if "lorex" not in key and key != "refused"} for row in lines]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        samples.end(path.parent)
    report = make_report(read_study(folder))
    assert report.test_time == []
    assert not FIGURES & {figure.name for figure in figures(report)}
    assert 'id="test-time"' not in page_of(report, [])


def test_an_attack_of_several_has_numbers_of_its_own(tmp_path: Path) -> None:
    """The second attack's stand behind `_2`, and a panel of it."""
    folder = study(tmp_path / "s")
    for path in folder.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        second = [{f"{key}_2": 0.5 for key in row if "lorex" in key and "_roc_" not in key} | {"asr_2": 0.7} for row in rows]
        path.write_text("".join(json.dumps(row | more) + "\n" for row, more in zip(rows, second, strict=True)))
        samples.end(path.parent)
    read = read_study(folder)
    found = [one for one in detections(read, make_report(read).judged.panels) if one.model == "poisoned" and one.numbers]
    by_way: dict[str, Detection] = {one.way: one for one in found if one.share == "at1"}
    assert set(by_way) == {"MMCL · attack 1", "MMCL · attack 2"}
    assert by_way["MMCL · attack 1"].numbers["tpr"] == pytest.approx(0.7)
    second_attack = by_way["MMCL · attack 2"]
    assert set(second_attack.numbers.values()) == {0.5}
    assert second_attack.before == pytest.approx((0.7, 0.8))
    assert set(second_attack.numbers) == set(by_way["MMCL · attack 1"].numbers)
