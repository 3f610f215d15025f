"""The report's table of what leaving pairs out gives, worked out by hand on made-up journals and cards."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import samples

from report.left_out import HEADS, Row, left_out
from report.load import read_study
from report.markdown import section
from report.page import page_of
from report.points import panels
from report.verdict import make_report
from report.write import write_report

RUNS: dict[str, tuple[int, int, list[float], dict[str, Any] | None]] = {  # pairs, poisoned, ASR by seed, what is left out
    "whole": (1000, 30, [0.9, 0.8], None),
    "plan": (970, 0, [0.01, 0.02], {"way": "plan"}),
    "random": (900, 27, [0.9, 0.7], {"way": "random", "share": 0.1}),
}
TWINS = [{f"twin of {objective}": (1000, 0, [0.02, 0.02], None)} for objective in ("mmcl", "slip")]  # by seed


def study(folder: Path, finished: bool = True) -> Path:
    runs: list[dict[str, Any]] = []
    for seed in (0, 1):
        for name, (pairs, poisoned, asr, less) in {**RUNS, **TWINS[seed]}.items():
            _, of_twin, objective = name.partition(" of ")
            run = f"pretrain-{name}-{seed}"
            entry: dict[str, Any] = {"run": run, "seed": seed, "swept": {"seed": seed}}
            entry |= {"stage": "twin" if of_twin else "pretrain", "pretrain_objective": objective or "mmcl"}
            if less is not None:
                entry["without"] = {**less, "whole": f"pretrain-whole-{seed}"}
                entry["swept"] = {"seed": seed, "data.pretrain.without": less}
            runs.append(entry)
            home = folder / run
            home.mkdir(parents=True)
            row = {"kind": "measure", "epoch": 1, "step": 1, "images": "x", "top1": 0.5, "asr": asr[seed], "pictures": 100,
                   "others": 90, "classes": 10}  # fmt: skip
            (home / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            (home / "card.json").write_text(json.dumps(samples.card(run=run, pairs=pairs, poisoned_pairs=poisoned)))
            if finished or less is None:
                samples.end(home)
    (folder / "study.json").write_text(json.dumps({"name": "s", "runs": runs}))
    return folder


def test_poison_left_and_clean_pairs_lost_are_counted_beside_the_rates(tmp_path: Path) -> None:
    rows = [row.cells for row in left_out(read_study(study(tmp_path)))]
    assert [row[1:6] for row in rows] == [
        ["nothing", "2", "0", "30", "0"],
        ["10 % at random", "2", "100", "27", "97"],
        ["the true plan", "2", "30", "0", "0"],
        ["nothing, never poisoned (twin)", "1", "0", "0", "0"],
    ], "a twin of another seed or objective is of none of them"
    assert {row[0] for row in rows} == {"MMCL"}
    assert [row[7] for row in rows[:3]] == ["85.0 % [80.0, 90.0]", "80.0 % [70.0, 90.0]", "1.5 % [1.0, 2.0]"]
    assert rows[3][7].startswith("2.0 % [")


def test_what_is_not_finished_is_counted_and_not_measured(tmp_path: Path) -> None:
    rows = [row.cells for row in left_out(read_study(study(tmp_path, finished=False)))]
    assert [row[6] for row in rows][1:3] == ["not measured"] * 2


def test_no_verdict_is_passed_on_what_left_pairs_out_and_was_not_cleaned(tmp_path: Path) -> None:
    """A model without the poisoned pairs has no backdoor on purpose: nobody is told to look at the number of them."""
    read = read_study(study(tmp_path))
    assert [panel.title for panel in panels(read)] == ["MMCL"]
    said = section(make_report(read), [])
    assert "never planted" not in said
    assert "took weakly" not in said
    assert "Each seed" not in said, "a table without a row"
    alone = [record for record in read.records if record.run.without is not None]
    assert len(panels(replace(read, records=alone))) == 2, "where nothing else is, they are shown"


def test_a_mean_of_counts_has_one_decimal(tmp_path: Path) -> None:
    folder = study(tmp_path)
    card = folder / "pretrain-random-1/card.json"
    card.write_text(json.dumps(samples.card(run=card.parent.name, pairs=899, poisoned_pairs=26)))
    row = next(row.cells for row in left_out(read_study(folder)) if row.what == "10 % at random")
    assert row[3:6] == ["100.5", "26.5", "97"]
    assert Row("MMCL", "x", 3, (4000.0, 5129 / 3, None), None, None).cells[3:6] == ["4,000", "1,709.7", "not known"]


def test_page_markdown_and_csv_have_the_table_and_only_where_pairs_are_left_out(tmp_path: Path) -> None:
    report = make_report(read_study(study(tmp_path / "a")))
    page, text = page_of(report, []), section(report, [])
    assert all(words in page and words in text for words in ("at random", "the true plan"))
    written = write_report(tmp_path / "a")
    assert (written.page.parent / "left_out.csv").read_text().splitlines()[0] == ",".join(HEADS)
    runs = json.loads((tmp_path / "a/study.json").read_text())
    runs["runs"] = [run for run in runs["runs"] if "without" not in run]
    (tmp_path / "a/study.json").write_text(json.dumps(runs))
    report = make_report(read_study(tmp_path / "a"))
    assert 'id="left-out"' not in page_of(report, [])
    assert left_out(report.study) == []
