"""Scratch and the cleaned twin: beside the cleaners, and never one of them. Worked out by hand on made-up journals."""

import json
from pathlib import Path
from typing import Any

import pytest
import samples

from report.ablation import by_cleaner
from report.controls import Control, controls
from report.costs import costs
from report.load import Study, read_study
from report.markdown import section
from report.page import page_of
from report.points import Panel, panels
from report.tables import verdict_json
from report.verdict import Judgement, judge, make_report

Rows = list[tuple[float, float]]  # top1, asr of each epoch from 0 on
PICTURES = {"pictures": 1000, "others": 900, "classes": 10, "asr_floor": 0.01}
A = ["A", [(0.80, 1.0), (0.70, 0.04), (0.60, 0.01)], [(0.80, 1.0), (0.71, 0.04)], [(0.80, 1.0), (0.72, 0.04)]]
B = ["B", [(0.80, 1.0), (0.29, 0.0)], [(0.80, 1.0), (0.32, 0.0)], [(0.80, 1.0), (0.31, 0.0)]]
SCRATCH = ["scratch", [(0.1, 0.2), (0.30, 0.0)], [(0.1, 0.2), (0.31, 0.0)], [(0.1, 0.2), (0.32, 0.0)]]
BETTER = ["scratch", [(0.1, 0.2), (0.79, 0.0)], [(0.1, 0.2), (0.71, 0.0)], [(0.1, 0.2), (0.75, 0.0)]]
TWINS: dict[str, list[Rows]] = {  # of seeds 0 and 1
    "A": [[(0.82, 0.0), (0.80, 0.0), (0.99, 0.0)], [(0.82, 0.0), (0.77, 0.0)]],
    "B": [[(0.82, 0.0)], [(0.82, 0.0), (0.32, 0.0)]],
}


def study(folder: Path, *cleaners: list[Any], twins: bool = True, begun: bool = True) -> Study:
    """A study of three seeds with these cleaners; of two seeds the twin was cleaned as well, unless `twins` is false. With
    `begun` false the pre-trainings have not ended."""
    runs: list[dict[str, Any]] = []

    def add(run: str, stage: str, seed: int, rows: Rows, **more: Any) -> None:
        runs.append({"run": run, "stage": stage, "pretrain_objective": "mmcl", "seed": seed, **more})
        (folder / run).mkdir(parents=True)
        lines = [
            {"kind": "measure", "epoch": epoch, "step": epoch, "images": "x", "top1": top1, "asr": asr, **PICTURES}
            for epoch, (top1, asr) in enumerate(rows)
        ]
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if rows:
            samples.end(folder / run)

    for seed in range(3):
        add(f"pretrain-{seed}", "pretrain", seed, [(0.80, 1.0)] if begun else [])
        add(f"twin-{seed}", "twin", seed, [(0.82, 0.0)])
    for name, *seeds in cleaners:
        facts = {"clean_objective": "mmcl", "cleaner": name, "rate": 1e-3}
        for seed, rows in enumerate(seeds):
            own = {"swept": {"cleaner": name, "seed": seed}, "cleaning": ["cleaner"], **facts}
            more = {"control": "fresh"} if name == "scratch" else {}
            add(f"clean-{name}-{seed}", "clean", seed, rows, start=f"pretrain-{seed}", **own, **more)
            for cleaned in TWINS.get(name, [])[seed : seed + 1] if twins else []:
                add(f"clean-twin-{name}-{seed}", "clean", seed, cleaned, start=f"twin-{seed}", control="twin", **own)
    (folder / "study.json").write_text(json.dumps({"name": "s", "runs": runs}))
    return read_study(folder)


def judged(study: Study) -> tuple[Panel, Judgement]:
    (panel,) = panels(study)
    return panel, judge([panel])


def test_a_cleaner_is_held_against_scratch_and_the_twin(tmp_path: Path) -> None:
    panel, found = judged(study(tmp_path, SCRATCH, A, B))
    first, second = found.controls
    assert (first.group, second.group) == (("MMCL", "A"), ("MMCL", "B"))
    assert (first.above and first.above.value, first.thrown) == (pytest.approx(0.40), False)
    # by seed -0.01, +0.01, -0.01: the bootstrap's ends are the extremes
    assert second.above is not None
    assert second.above.value == pytest.approx(-0.01 / 3)
    assert second.interval == pytest.approx((-0.01, 0.01))
    assert second.thrown is True
    # at epoch 1, the poisoned model's best, the twins lost 0.02 and 0.05; of B that of seed 0 did not get there
    assert [first.cost, second.cost] == [
        (first.cost.metric if first.cost else None, 2, 3, pytest.approx(0.035), pytest.approx((0.02, 0.05))),
        (second.cost.metric if second.cost else None, 1, 3, pytest.approx(0.50), None),
    ]
    # beside it what the poisoned models of the same seeds lost, and of no other
    assert [one.beside and one.beside[1:4] for one in (first, second)] == [
        (2, 3, pytest.approx(0.095)),
        (1, 3, pytest.approx(0.48)),
    ]
    (verdict,) = found.verdicts
    assert verdict.status == "dear"
    assert "at top-1 71.0 % [70.0, 72.0]" in verdict.sentence
    assert found.sentences[1:] == [
        "B threw the MMCL model away: at ASR ≤ 5 % its top-1 is no better than that of the same clean data with fresh "
        "weights (scratch), -0.3 points [-1.0, +1.0] over 3 seeds."
    ]
    assert {name for _, name in found.means} == {"A", "B", "scratch"}
    assert by_cleaner([panel])["MMCL"].keys() == {"A", "B", "scratch"}
    assert not [name for score in found.scores if score.control for name in score.numbers if name.startswith("chosen")]


def test_scratch_is_no_candidate_and_who_does_no_better_has_thrown_the_model_away(tmp_path: Path) -> None:
    panel, found = judged(study(tmp_path, A, BETTER))
    assert {point.label.objective for point in panel.points} == {"A"}
    assert panel.cleanings == (3, 3)
    (verdict,) = found.verdicts
    assert verdict.status == "scratch"
    assert "at top-1 71.0 %" in verdict.sentence
    # 0.70 - 0.79, 0.71 - 0.71, 0.72 - 0.75
    assert verdict.sentence.endswith("(scratch), -4.0 points [-9.0, +0.0] over 3 seeds.")


def test_of_one_seed_the_rates_must_lie_apart_by_wilsons_intervals(tmp_path: Path) -> None:
    """Of 1,000 pictures 0.70 is [0.671, 0.728], 0.66 [0.630, 0.689], 0.60 [0.569, 0.630]."""
    near, far = [(0.1, 0.2), (0.66, 0.0)], [(0.1, 0.2), (0.60, 0.0)]
    kinds = [judged(study(tmp_path / str(n), A[:2], ["scratch", rows]))[1] for n, rows in enumerate((near, far))]
    assert [one.controls[0].thrown for one in kinds] == [True, False]
    assert [one.verdicts[0].status for one in kinds] == ["scratch", "dear"]
    assert kinds[1].controls[0].interval == pytest.approx((0.671 - 0.630, 0.728 - 0.569), abs=1.5e-3)


def test_a_cleaned_twin_is_counted_nowhere_else(tmp_path: Path) -> None:
    (bare, without), (panel, found) = (
        judged(study(tmp_path / str(twins), A, B, SCRATCH, twins=twins)) for twins in (False, True)
    )
    contents = [json.loads(verdict_json(one)) for one in (without, found)]
    assert [content.pop("controls")[0]["twin_cost"] is None for content in contents] == [True, False]
    assert contents[0] == contents[1]
    for field in ("starts", "twins", "points", "scratch", "cleanings"):
        assert getattr(panel, field) == getattr(bare, field), field
    assert (len(panel.cleaned_twins), len(panel.points)) == (4, 7)


def test_epoch_0_of_scratch_is_no_start(tmp_path: Path) -> None:
    panel, _ = judged(study(tmp_path, SCRATCH, A, begun=False))
    assert [(start.top1, start.asr) for start in panel.starts] == [(0.80, 1.0)] * 3


def test_the_same_objective_from_the_start_and_from_scratch_are_two(tmp_path: Path) -> None:
    whole = study(tmp_path, A, SCRATCH)
    for record in whole.records:
        object.__setattr__(record, "run", record.run.model_copy(update={"cleaner": None} if record.run.cleaner else {}))
    panel, found = judged(whole)
    assert {name for _, name in found.means} == {"MMCL", "MMCL, fresh weights"}
    assert found.controls[0].group == ("MMCL", "MMCL")


def test_page_markdown_table_and_costs_tell_of_controls(tmp_path: Path) -> None:
    whole = study(tmp_path, A, B, SCRATCH)
    report = make_report(whole)
    page, markdown = page_of(report, []), section(report, []).replace("\\", "")
    for text in (page, markdown):
        assert "+40.0 [+40.0, +40.0]" in text
        assert "-0.3 [-1.0, +1.0]: no better" in text
        assert "-3.5 [-5.0, -2.0]" in text  # of the twin
        assert "B threw the MMCL model away" in text
    assert "1 of 3 seeds" in page
    assert "A of the twin" in page
    assert "cleaning of the twin, A" in {kind for (kind, _), _ in costs(whole).groups}
    assert {row.get("control") for row in whole.results.rows} == {None, "fresh", "twin"}
    assert "scratch, the control: best top-1 at ASR ≤ 5 %" in {row.what for row in report.summaries[0]}


def test_without_controls_nothing_is_said_of_them(tmp_path: Path) -> None:
    whole = study(tmp_path, A, twins=False)
    found: list[Control] = controls(panels(whole))
    assert found == []
    report = make_report(whole)
    assert "Controls" not in page_of(report, [])
    assert "Controls" not in section(report, [])
    assert "control" not in whole.results.columns
