"""What the report says of audits: each number beside those of clean models, in the table, the file and the figure."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_figures import study

from records.audit import AuditJson, ClassFound, Decree, Null, StampFound, Targets, Texts
from records.folder import RecordFile
from report.audits import audit_rows, audits
from report.figures import figures
from report.load import read_study
from report.markdown import section
from report.page import page_of
from report.verdict import make_report
from report.write import write_report


def found(share: float, **changes: Any) -> dict[str, Any]:
    """A stamp that was found."""
    facts = {"succeeded": True, "size": 3072 * share, "share": share, "steps": 9, "file": "decree.safetensors"}
    return {**facts, "target": "banana", "asr": 1.0, "asr_floor": 0.01, "iou": 0.25, **changes}


def record(digest: str, share: float, index: float | None, planted: list[str] | None, **changes: Any) -> AuditJson:
    """One audit."""
    classes = [ClassFound(name="banana", size=3.0, succeeded=True, index=index)]
    facts: dict[str, Any] = {
        "weights": f"runs/s/{digest}", "digest": digest, "model": "m", "images": "i", "images_digest": "d", "pictures": 32,
        "held": 32, "settings": {"seed": 0}, "seconds": 1.0, "targets_planted": planted,
        "decree": Decree(**found(share), cosine=0.99, conspicuous=share < 0.1),
        "targets": Targets(classes=classes, index=index, flagged=[], smallest=StampFound(**found(0.01))),
        "texts": Texts(assimilation=0.9, plain=0.4, target="moon", words=[], compared=False),
    }  # fmt: skip
    return AuditJson(**{**facts, **changes})


def write(folder: Path, run: str, audit: RecordFile) -> None:
    (folder / run / "audit").mkdir()
    audit.write(folder / run / "audit")


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    """A poisoned start, a cleaned model and three clean models of four, audited; the last was asked something else."""
    folder = study(tmp_path / "s", **{"clean-a": {"points": [(0.7, 0.04)]}})
    plan = json.loads((folder / "study.json").read_text())
    for number in range(4):
        run = f"twin-{number}"
        plan["runs"].append({"run": run, "stage": "twin", "pretrain_objective": "mmcl", "seed": number, "title": run})
        (folder / run).mkdir()
        (folder / run / "metrics.jsonl").write_text("")
        other = {"settings": {"seed": 1}} if number == 3 else {}
        write(folder, run, record(run, 0.1 + 0.1 * number, 1.0 + number, [], **other))
    (folder / "study.json").write_text(json.dumps(plan))
    write(folder, "pretrain-a", record("p", 0.01, 2.5, ["banana"]))
    write(folder, "clean-a", record("c", 0.25, None, ["banana"]))
    return folder


def test_numbers_stand_beside_those_of_the_clean_models_that_were_asked_the_same(audited: Path) -> None:
    told = {(one.run, one.audit): one for one in audits(read_study(audited))}
    poisoned, scan = told["pretrain-a", "decree"], told["pretrain-a", "targets"]
    assert (poisoned.model, poisoned.value, poisoned.clean) == ("poisoned", 1.0, pytest.approx((10.0, 20.0, 30.0)))
    assert (poisoned.p, poisoned.smallest) == (0.25, 0.25)
    assert (scan.value, scan.clean, scan.p) == (2.5, (1.0, 2.0, 3.0), 0.5)
    assert told["pretrain-a", "texts"].p == 1.0  # as conspicuous as all of them
    assert told["clean-a", "decree"].p == 0.75  # 25 %: two of three clean models need less
    assert ("clean-a", "targets") not in told  # it has no index
    twin = told["twin-0", "decree"]
    assert (twin.model, twin.p, len(twin.clean)) == ("clean", None, 2)
    assert told["twin-3", "decree"].clean == ()


def test_without_clean_models_in_the_study_those_given_to_the_audit_count(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    null = {"decree": Null(value=-0.01, clean=[-0.2, -0.005], p=2 / 3, smallest=1 / 3)}
    write(folder, "pretrain-a", record("p", 0.01, 2.5, None, null=null))
    told = {one.audit: one for one in audits(read_study(folder))}
    assert told["decree"].p == 2 / 3
    assert told["decree"].clean == pytest.approx((20.0, 0.5))
    assert (told["targets"].p, told["targets"].smallest) == (None, None)


def test_a_cleaned_twin_is_none_of_the_clean_models(audited: Path) -> None:
    """Nothing of it was poisoned, but it is what the cleaning made of it."""
    shutil.rmtree(audited / "clean-a/audit")
    write(audited, "clean-a", record("c", 0.25, None, []))
    told = {(one.run, one.audit): one for one in audits(read_study(audited))}
    assert (told["clean-a", "decree"].model, told["clean-a", "decree"].p) == ("cleaned", 0.75)
    assert told["pretrain-a", "decree"].clean == pytest.approx((10.0, 20.0, 30.0))


def test_the_report_has_table_file_and_figure_of_audits(audited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report(read_study(audited))
    (mine,) = (figure for figure in figures(report) if figure.name == "audits")
    monkeypatch.setattr("report.write.figures", lambda report: [mine])  # the others take long to draw
    page = write_report(audited).page
    text = page.read_text()
    assert '<h2 id="audits">' in text
    assert page.with_name("audits.png").stat().st_size > 10_000
    assert "planted: banana" in text
    with page.with_name("audits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.audits)
    assert (rows[0]["audit"], float(rows[0]["p"]), rows[0]["clean"]) == ("decree", 0.25, "3")
    assert "Audits: is the model backdoored?" in section(report, [])
    title, cells = audit_rows(report.audits)[0]
    assert cells[2] == ("1.00 %", "")
    assert cells[4] == ("100.0 %", "1.0 % without it")


def test_a_study_without_audits_says_nothing_of_them_and_a_damaged_one_is_named(tmp_path: Path, audited: Path) -> None:
    plain = study(tmp_path / "plain")
    report = make_report(read_study(plain))
    assert not report.audits
    assert "audits" not in [figure.name for figure in figures(report)]
    assert 'id="audits"' not in page_of(report, [])
    path = audited / "pretrain-a/audit/audit.json"
    path.write_text(path.read_text().replace("banana", "banane"))
    read = read_study(audited)
    assert read.records[0].audit is None
    assert "audit.json is damaged" in read.records[0].faults[0]
