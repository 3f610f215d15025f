"""The report: verdict, table and page from journals alone."""

import csv
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import samples
from submissions import ATTACK, submission

import report
from records.json_file import DIGEST, write_json
from report.__main__ import main
from report.compare import _unlike, joint_panels, measure
from report.load import read_study
from report.points import panels
from report.write import write_report


def study(folder: Path, name: str = "s") -> Path:
    """Two pre-trainings and three cleanings with made-up numbers; one cleaning is cut short."""
    table = [
        ("pretrain-a", None, "mmcl", 1e-3),
        ("pretrain-b", None, "mmcl_ssl", 1e-3),
        ("clean-a", "pretrain-a", "mmcl", 1e-4),
        ("clean-b", "pretrain-b", "mmcl_ssl", 1e-4),
        ("clean-c", "pretrain-b", "mmcl_ssl", 1e-3),
    ]
    cards: list[dict[str, Any]] = [
        {"run": run, "stage": run.split("-")[0], "start": start, "pretrain_objective": objective, "rate": rate}
        for run, start, objective, rate in table
    ]
    points = {
        "pretrain-a": [(0.03, 0.01), (0.80, 0.99)],
        "pretrain-b": [(0.03, 0.01), (0.82, 0.97)],
        "clean-a": [(0.80, 0.99), (0.70, 0.20), (0.79, 0.03)],
        "clean-b": [(0.82, 0.97), (0.81, 0.60)],
        "clean-c": [(0.82, 0.97), (0.5, 0.7)],
    }
    for card in cards:
        card |= {"seed": 0, "clean_objective": "cleanclip" if card["start"] else None, "swept": {}}
        card["cleaner"] = "ours" if card["run"] == "clean-c" else card["clean_objective"]
        run = folder / str(card["run"])
        run.mkdir(parents=True)
        rows = [
            {"kind": "measure", "images": "demo", "epoch": i, "step": 10 * i, "top1": top1, "asr": asr, "seconds": 1.0}
            for i, (top1, asr) in enumerate(points[str(card["run"])])
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "metrics.jsonl").write_text(text + ('{"kind": "mea' if card["run"] == "clean-c" else ""))
        (run / "card.json").write_text(json.dumps(samples.card()))
        if card["run"] != "clean-c":
            samples.end(run, seconds=0)
    content = {
        "name": name,
        "command": "c",
        "question": "<script>alert(1)</script>?",
        "target": "=cmd()",
        "spec": {},
        "runs": cards,
    }
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def test_verdict_table_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study(tmp_path / "s"))]) == 0
    output = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")
    assert re.search(r"MMCL .*99\.0 %.*3\.0 %.*79\.0 %", output)
    assert "60.0 %" in output
    rows = list(csv.DictReader((tmp_path / "s/report/results.csv").read_text().splitlines()))
    assert len(rows) == 11
    best = [row for row in rows if row["run"] == "clean-a" and row["epoch"] == "2"][0]
    assert (best["top1"], best["asr"], best["stage"], best["clean_objective"]) == ("0.79", "0.03", "clean", "cleanclip")
    page = (tmp_path / "s/report/index.html").read_text()
    assert "<script>alert" not in page
    assert not re.search(r"""(?:src|href)=["']https?:""", page)
    assert "4 of 5" in re.sub(r"<[^>]+>", "", page)
    assert (tmp_path / "s/report/frontier.png").read_bytes().startswith(b"\x89PNG")
    assert f"python -m report {tmp_path / 's'}" in page


@pytest.mark.usefixtures("blank_figures")
def test_the_report_is_made_again_from_the_journals_alone(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    write_report(folder)
    first = (folder / "report/results.csv").read_bytes()
    for path in (folder / "report").iterdir():
        path.unlink()
    write_report(folder)
    assert (folder / "report/results.csv").read_bytes() == first


def test_a_pre_training_that_starts_from_weights_is_one_start(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    content = json.loads((folder / "study.json").read_text())
    for card in content["runs"]:
        card["start"] = card["start"] or "weights-0123456789ab"
    (folder / "study.json").write_text(json.dumps(content))
    assert [[start.top1 for start in panel.starts] for panel in panels(read_study(folder))] == [[0.80], [0.82]]


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "study.json" in capsys.readouterr().err


def test_two_studies_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    first, second = study(tmp_path / "a", "first"), study(tmp_path / "b", "second")
    assert main([str(first), str(second)]) == 0
    output = capsys.readouterr().out
    assert "MMCL (first) model" in output
    assert "MMCL (first) less MMCL (second): +0.0 points" in output
    out = first / "report/compare-b"
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert [panel.title for panel in joint_panels(measure([read_study(first), read_study(second)]))] == [
        "MMCL (first)", "MMCL (second)", "MMCL+SSL (first)", "MMCL+SSL (second)",
    ]  # fmt: skip
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["study"] for row in rows].count("second") == 11
    assert {row["way"] for row in csv.DictReader((out / "verdict.csv").read_text().splitlines())} >= {"MMCL (second)"}
    request.getfixturevalue("blank_figures")
    assert main([str(first), str(second), "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c/verdict.json").read_bytes() == (out / "verdict.json").read_bytes()


@pytest.mark.usefixtures("blank_figures")
def test_a_comparison_says_that_numbers_are_of_other_pictures_or_triggers(tmp_path: Path) -> None:
    small: dict[str, Any] = {"seeds": (0,), "twin": False}
    same, other = submission(tmp_path / "a", **small), submission(tmp_path / "b", **small)
    patch = submission(tmp_path / "c", attack={**ATTACK, "trigger": {"kind": "blend"}}, **small)
    assert _unlike([read_study(same), read_study(other)]) == []
    assert "different triggers or targets" in _unlike([read_study(same), read_study(patch)])[0]
    for run in other.glob("*-*"):
        path = run / "finished.json"
        end = {key: value for key, value in json.loads(path.read_text()).items() if key != DIGEST}
        write_json(path, {**end, "measured": {**end["measured"], "labels": "as_published"}})
    (said,) = _unlike([read_study(same), read_study(other)])
    assert said == "The studies' numbers are of different pictures or labels: no difference here is of the models alone."


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(tmp_path / "a")
    assert main([str(folder), str(folder)]) == 2
    assert "two are one folder" in capsys.readouterr().err
    assert main([str(folder), "--out", str(tmp_path / "o")]) == 2
    assert main([str(folder), "--import", "x.json"]) == 2
    (tmp_path / "file").write_text("")
    assert main([str(folder), str(study(tmp_path / "b", "t")), "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_step_rows_are_passed_over_and_damage_is_counted(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    path = folder / "clean-c/metrics.jsonl"
    step = '{"kind": "step", "epoch": 7, "step": 70, "loss": 1.0}'
    measure = '{"kind": "measure", "images": "demo", "epoch": 6, "step": 60, "top1": 0.4, "asr": 0.3}'
    path.write_text(f'{measure}\n{{"kind": "mea\n{{"kind": "step", "epo\n{step}\n{{"kind": "st')
    (record,) = (run for run in read_study(folder).records if run.run.run == "clean-c")
    assert (record.damaged, len(record.evaluations)) == (2, 1)
    assert record.state == "unfinished, at epoch 7, step 70"


@pytest.mark.usefixtures("blank_figures")
def test_the_page_of_a_large_study_lists_the_last_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("report.page.MOST", 10)
    page = write_report(study(tmp_path / "s")).page.read_text()
    assert "The last evaluation of each run, 5 of 11 rows" in page
    assert len((tmp_path / "s/report/results.csv").read_text().splitlines()) == 12


@pytest.mark.usefixtures("blank_figures")
def test_parquet_holds_the_table_and_without_pyarrow_there_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    assert main([str(study(tmp_path / "s"))]) == 0
    assert "pyarrow" not in capsys.readouterr().out
    rows = pyarrow.parquet.read_table(tmp_path / "s/report/results.parquet").to_pylist()
    table = list(csv.DictReader((tmp_path / "s/report/results.csv").read_text().splitlines()))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == table
    assert isinstance(rows[0]["top1"], float)
    (tmp_path / "s/report/results.parquet").unlink()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main([str(tmp_path / "s")]) == 0
    assert "needs pyarrow" in capsys.readouterr().out
    assert not (tmp_path / "s/report/results.parquet").exists()


def test_all_of_the_report_is_imported_at_once_and_without_heavy_libraries() -> None:
    modules = [module.name for module in pkgutil.walk_packages(report.__path__, "report.")]
    script = (
        f"import sys, time; import {', '.join(modules)}; "
        "print(time.process_time(), *{name.partition('.')[0] for name in sys.modules})"
    )
    for _ in range(3):  # on a busy machine the same work takes longer
        output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
        seconds, *imported = output.split()
        heavy = {"torch", "engine", "configs", "objectives", "matplotlib", "scipy", "jinja2", "PIL", "deepspeed"}
        assert not heavy & set(imported)
        if float(seconds) < 1.5:  # some 0.3 on an idle machine; a heavy library takes more than a second
            return
    raise AssertionError(f"the report took {seconds} s of CPU to be imported")
