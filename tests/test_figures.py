"""Figures of a study: their numbers worked out by hand, which figures a study has, and files that name their command."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from measures.frontier import FrontierPoint
from report.__main__ import main
from report.ablation import Ablation, Reached, by_cleaner, by_epoch, by_setting, settings
from report.dynamics import curves_of
from report.figures import figures
from report.load import read_study
from report.plots.ablation import ablation
from report.plots.answers import RIGHT, WRONG
from report.plots.frontier import frontier
from report.plots.style import DARK, INK, LINES, PAPER, STAR, TWIN, palette, svg, titles
from report.points import Origin, Panel, PointInfo, panels
from report.verdict import make_report
from report.write import write_report

ANSWERS = [["apple", "banana", "apple", "banana"], ["moon", "banana", "star", "moon"]]


def sheet(width: int = 16, height: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(out, "PNG")
    return out.getvalue()


def study(folder: Path, **cleaning: dict[str, Any]) -> Path:
    """A pre-training of ASR 1.0 and top-1 0.8 with geometry, and cleanings given as {"swept": ..., "points": [(top1, asr)]};
    those with "answers" tell them at each epoch."""
    runs: list[dict[str, Any]] = [{"run": "pretrain-a", "stage": "pretrain", "pretrain_objective": "mmcl", "seed": 0}]
    rows: dict[str, list[dict[str, Any]]] = {
        "pretrain-a": [
            {"epoch": epoch, "top1": top1, "asr": asr, "similarity_clean": top1, "similarity_poisoned": asr}
            for epoch, (top1, asr) in enumerate([(0.1, 0.1), (0.8, 1.0)])
        ]
    }
    for name, cleaned in cleaning.items():
        swept = {"clean.optimizer.rate": 1e-4, **cleaned.get("swept", {})}
        facts = {"start": "pretrain-a", "pretrain_objective": "mmcl", "clean_objective": "cleanclip", "rate": 1e-4}
        own = {"cleaner": cleaned.get("cleaner"), "seed": cleaned.get("seed", 0), "swept": swept, "cleaning": sorted(swept)}
        runs.append({"run": name, "stage": "clean", **facts, **own})
        points = [(0.8, 1.0), *cleaned["points"]]
        rows[name] = [{"epoch": epoch, "top1": top1, "asr": asr} for epoch, (top1, asr) in enumerate(points)]
        for row in rows[name] if "answers" in cleaned else []:
            row["answers"] = cleaned["answers"]
    for run, lines in rows.items():
        (folder / run).mkdir(parents=True)
        whole = [{"kind": "measure", "step": row["epoch"], "images": "demo", **row} for row in lines]
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
        samples.end(folder / run)
        (folder / run / "answers.png").write_bytes(sheet())
    (folder / "study.json").write_text(json.dumps({"name": "s", "runs": runs}))
    return folder


def figure_names(folder: Path) -> list[str]:
    return [figure.name for figure in figures(make_report(read_study(folder)))]


def test_what_is_reached_by_hand(tmp_path: Path) -> None:
    measured = panels(
        read_study(
            study(
                tmp_path / "s",
                a={"swept": {"data.clean.pairs": 100}, "points": [(0.77, 0.50), (0.70, 0.04), (0.60, 0.01)]},
                b={"swept": {"data.clean.pairs": 100}, "points": [(0.75, 0.05)], "seed": 1},
                c={"swept": {"data.clean.pairs": 200}, "points": [(0.79, 0.30)], "cleaner": "ours"},
            )
        )
    )
    assert settings(measured) == ["data.clean.pairs"]
    # floor: 95 % of 0.8 is 0.76; seed 0 reaches it with ASR 0.5 at 100 pairs, seed 1 (0.75) does not
    assert by_setting(measured, "data.clean.pairs") == {
        "MMCL": {100: [Reached(0.70, 0.50), Reached(0.75, None)], 200: [Reached(None, 0.30)]}
    }
    assert by_cleaner(measured) == {
        "MMCL": {"CleanCLIP": [Reached(0.70, 0.50), Reached(0.75, None)], "ours": [Reached(None, 0.30)]}
    }
    assert by_epoch(measured)["MMCL"] == {
        1: [Reached(None, 0.30), Reached(0.75, None)],
        2: [Reached(0.70, 0.30), Reached(0.75, None)],
        3: [Reached(0.70, 0.30), Reached(0.75, None)],
    }


rate = st.integers(0, 20).map(lambda n: n / 20)


@given(st.lists(st.tuples(rate, rate, st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=40))
def test_more_epochs_never_reach_less(points: list[tuple[float, float, int, int]]) -> None:
    start = FrontierPoint(1.0, 0.8, Origin("p"))
    marks = [FrontierPoint(asr, top1, PointInfo("r", epoch, 1e-4, "c", start, seed)) for asr, top1, epoch, seed in points]
    line = by_epoch([Panel("MMCL", [start], [], marks, 1, 1)])["MMCL"]
    assert list(line) == sorted({epoch for *_, epoch, _ in points})
    best = [max((seed.best for seed in line[epoch] if seed.best is not None), default=-1.0) for epoch in line]
    low = [min((seed.low for seed in line[epoch] if seed.low is not None), default=2.0) for epoch in line]
    assert best == sorted(best)
    assert low == sorted(low, reverse=True)


def test_a_study_has_the_figures_that_it_has_numbers_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rich = study(
        tmp_path / "rich",
        a={"swept": {"clean.objective.within": 1.0}, "points": [(0.7, 0.04), (0.7, 0.03)], "answers": ANSWERS},
        b={"swept": {"clean.objective.within": 8.0}, "points": [(0.6, 0.01)], "cleaner": "ours"},
    )
    names = figure_names(rich)
    along = "along-clean-objective-within"
    assert names == [
        "frontier",
        "cleaners",
        "by-cleaner",
        along,
        "epochs",
        "trajectories",
        "dynamics",
        "similarity",
        "answers",
    ]
    page = write_report(rich).page
    command = f"python -m report {rich}"
    for name in names:
        with Image.open(page.with_name(f"{name}.png")) as opened:
            assert opened.info["Description"] == command
        assert b"/Subject" in page.with_name(f"{name}.pdf").read_bytes()
        assert f'href="{name}.pdf"' in page.read_text()
    poor = study(tmp_path / "poor")
    assert figure_names(poor) == ["dynamics", "similarity"]  # it cleans nothing
    assert main([str(poor)]) == 0
    assert capsys.readouterr().out.endswith(f"{poor}/report/index.html\n{poor}/report/dynamics.png\n")


@pytest.mark.parametrize(
    ("answers", "picture"),
    [
        (ANSWERS, b"no picture"),
        (ANSWERS, sheet(24, 16)),  # of three pictures, not two
        ([["apple", "banana"]], sheet()),
        ("apple", sheet()),
        (ANSWERS, None),
    ],
)
def test_answers_that_can_not_be_shown_are_left_out(tmp_path: Path, answers: Any, picture: bytes | None) -> None:
    folder = study(tmp_path / "s", a={"points": [(0.7, 0.04)], "answers": answers})
    assert "answers" not in figure_names(folder) or answers == ANSWERS
    path = folder / "a/answers.png"
    path.unlink() if picture is None else path.write_bytes(picture)
    assert "answers" not in figure_names(folder)


def test_curves_are_of_pre_trainings_on_one_set_of_images(tmp_path: Path) -> None:
    read = read_study(study(tmp_path / "s", a={"points": [(0.7, 0.04)]}))
    (curve,) = curves_of(read, "similarity_clean")
    assert (curve.label, curve.twin, curve.line) == ("MMCL", False, [(0, 0.1), (1, 0.8)])
    assert curves_of(read, "uniformity") == []


def test_what_is_reached_by_each_epoch_is_as_by_brute_force_and_is_bounded() -> None:
    """Each epoch's numbers are those of all points up to it; of many epochs some are shown, the last among them."""
    chance = random.Random(0)
    starts = [FrontierPoint(0.9, 0.5 + 0.1 * seed, Origin(f"p{seed}", seed)) for seed in range(2)]

    def drawn(count: int) -> list[Panel]:
        infos = [PointInfo("r", n // 2 + 1, None, "c", starts[n % 2], n % 2) for n in range(count)]
        return [Panel("w", starts, [], [FrontierPoint(chance.random(), chance.random(), info) for info in infos], 1, 1)]

    def brute(panel: Panel, epoch: float, seed: int) -> Reached:
        until = [p for p in panel.points if p.label.epoch <= epoch and p.label.seed == seed]
        best = max((p.top1 for p in until if p.asr <= 0.05), default=None)
        return Reached(best, min((p.asr for p in until if p.top1 >= 0.95 * starts[seed].top1), default=None))

    (panel,) = drawn(80)
    line = by_epoch([panel])["w"]
    assert {e: reached for e, reached in line.items()} == {e: [brute(panel, e, s) for s in range(2)] for e in range(1, 41)}
    many = list(by_epoch(drawn(20_000))["w"])
    assert len(many) == 60
    assert (many[-1], many) == (10_000, sorted(many))


def contrast(one: Any, other: Any) -> float:
    """The contrast ratio of two colours (WCAG 2)."""
    from matplotlib.colors import to_rgb

    def luminance(colour: Any) -> float:
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_mark_stands_out_on_light_and_on_dark_paper() -> None:
    rates = [colour for count in (1, 2, 5, 12, 40) for colour in np.asarray(palette(count).colors)]
    for colour in (*rates, *LINES, STAR, TWIN, RIGHT, WRONG):
        assert min(contrast(colour, paper) for paper in (PAPER, DARK[PAPER])) >= 3
    assert contrast(INK, PAPER) > 7
    assert contrast(DARK[INK], DARK[PAPER]) > 7


@given(st.lists(st.text(st.characters(categories=["L", "N"]) | st.sampled_from(" _-/·"), min_size=1), unique=True))
def test_titles_are_whole_and_fit(names: list[str]) -> None:
    for name, title in zip(names, titles(names, 12), strict=True):
        assert all(len(line) <= 12 for line in title.splitlines())
        assert "".join(title.split()) == "".join(name.split())


def test_a_drawing_follows_the_readers_scheme_and_is_the_same_each_time() -> None:
    first, second = (svg(frontier([None, *drawn_panels()], 2)) for _ in range(2))
    assert first == second
    text = first.decode()
    assert "@media(prefers-color-scheme:dark){:root{--c0:#d8dde2" in text
    for light in (INK, PAPER):
        assert text.lower().count(light) == 1, "only where the light scheme is set"
    assert "not run" in text  # a hole in the grid says what it is


def drawn_panels() -> list[Panel]:
    """A panel of two cleaned points."""
    start = FrontierPoint(0.9, 0.8, Origin("p"))
    points = [FrontierPoint(0.1 * n, 0.7, PointInfo("r", n, 1e-4 * n, "c", start)) for n in (1, 2)]
    return [Panel("w", [start], [], points, 1, 1)]


def test_numbers_lie_at_their_true_places_on_an_axis() -> None:
    results: Ablation = {way: {1: [Reached(0.5, 0.1)], 2: [Reached(0.6, 0.1)], 8: [Reached(0.7, 0.1)]} for way in "ab"}
    for ax in ablation(results, "epochs", True).axes:
        lines = [np.asarray(line.get_xdata()).tolist() for line in ax.lines]
        assert [line for line in lines if len(line) == 3] == [[1, 2, 8]] * 2
    named: Ablation = {way: {"x": [Reached(0.5, 0.1)], "y": [Reached(0.6, 0.1)]} for way in "ab"}
    assert [tick.get_text() for tick in ablation(named, "cleaner", False).axes[0].get_xticklabels()] == ["x", "y"]
    alike: Ablation = {"way": {f"all settings but {name} as published": [Reached(0.5, 0.1)] for name in ("one", "two")}}
    told = [tick.get_text() for tick in ablation(alike, "cleaner", False).axes[0].get_xticklabels()]
    assert told == ["all settings but one\nas published", "all settings but two\nas published"]
