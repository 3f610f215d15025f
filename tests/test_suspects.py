"""Scores of training pairs in the report: which runs are one way, and the numbers along the share of poison by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.detection.judge import result_of
from measures.detectors.budget import Budget, flagged
from measures.detectors.ranking import curve, histogram, ranked
from records.detection import DetectionJson, DetectorResult
from records.study_json import RunEntry
from report.load import Study
from report.plots.suspects import auroc_by_share
from report.suspects import HEADS, along_shares, roc_of, scored, scored_rows

AUROC = {("patch", 0.01): (0.6, 0.8), ("patch", 0.1): (0.3, 0.5), ("warp", 0.01): (0.9, 1.0), ("warp", 0.1): (0.2, 0.4)}


def run(trigger: str, fraction: float, seed: int, auroc: float) -> Any:
    """A pre-training of 1,000 pairs whose poisoned ones are scored with that AUROC; 1 % of its twin's pairs are flagged."""
    entry = RunEntry(
        run=f"pretrain-{trigger}-{fraction}-{seed}", stage="pretrain", title="pretrain mmcl", start=None,
        pretrain_objective="mmcl", clean_objective=None, cleaner=None, rate=1e-3, seed=seed,
        swept={"seed": seed, "trigger": trigger, "attack.poison.fraction": fraction},
    )  # fmt: skip
    one = DetectorResult(
        title="k_dist", kind="k_dist", scored=1000, flagged=10, poisoned_flagged=5, threshold=1.0,
        numbers={"auroc": auroc}, twin={"threshold": 0.01 * seed},
    )  # fmt: skip
    found = DetectionJson(
        run=entry.run, asked={}, weights="", pairs=1000, poisoned=round(1000 * fraction), replaced=0, encoding=1.0,
        processes=1, files={}, detectors=[one],
    )  # fmt: skip
    return SimpleNamespace(run=entry, detection=found)


@pytest.fixture
def study() -> Study:
    every = [run(*way, seed, auroc) for way, seeds in AUROC.items() for seed, auroc in enumerate(seeds, start=1)]
    return SimpleNamespace(records=every)  # type: ignore[return-value]


def test_seeds_are_one_way_and_triggers_under_a_name_of_the_users_are_not(study: Study) -> None:
    rows = {way: cells[1][0] for way, cells in scored_rows(scored(study))}
    assert rows == {
        "MMCL · trigger=patch · poison.fraction=0.01": "0.700",
        "MMCL · trigger=patch · poison.fraction=0.1": "0.400",
        "MMCL · trigger=warp · poison.fraction=0.01": "0.950",
        "MMCL · trigger=warp · poison.fraction=0.1": "0.300",
    }


@pytest.mark.parametrize("grain", [None, 0.1])
@pytest.mark.parametrize("pairs", [40, 5000])
def test_the_curve_and_the_bins_are_those_of_the_scores(pairs: int, grain: float | None) -> None:
    """A record keeps the order and the ends of the histogram alone; with and without ties, of few and of many pairs."""
    draw = np.random.default_rng(pairs)
    poisoned = np.arange(pairs) % 10 == 0
    scores = draw.normal(size=pairs) + poisoned
    scores = scores if grain is None else (scores / grain).round() * grain
    attacks = np.where(poisoned, 0, -1)
    found = result_of("k_dist", "k_dist", scores, attacks, flagged(scores, np.arange(pairs), Budget(share=0.1)), {})
    assert (found.curve, len(found.edges)) == ([], 2)
    told, whole = np.array(roc_of(found)), ranked(scores, poisoned)
    assert told[[0, -1]].tolist() == [[0, 0], [1, 1]]
    across = np.interp(told.sum(1), whole.fpr + whole.tpr, whole.fpr)  # a place on the curve, along both axes
    assert np.allclose(across, told[:, 0], rtol=0, atol=1e-12)
    assert len(told) > 6
    edges, clean, bad = histogram(scores, poisoned)
    assert np.allclose(found.bins, edges, rtol=0, atol=1e-12)
    assert (found.clean, found.poisoned) == (clean, bad)
    older = found.model_copy(update={"edges": edges, "curve": curve(whole)})
    assert (older.bins, roc_of(older)) == (found.bins, roc_of(found))
    assert roc_of(found.model_copy(update={"order": "", "curve": curve(whole)})) == curve(whole)
    assert roc_of(found.model_copy(update={"order": "x"})) == []


def test_a_mean_is_of_those_that_have_the_number_and_says_of_how_many(study: Study) -> None:
    """Of two seeds one flags nothing, so that it has no share of poison among the flagged, and has no twin."""
    first, second, *_ = scored(study)
    nothing = second.found.model_copy(update={"flagged": 0, "poisoned_flagged": 0, "twin": {}})
    ((_, cells),) = scored_rows([first, replace(second, found=nothing)])
    told = dict(zip(HEADS, cells, strict=True))
    assert (told["poisoned among them"], told["flagged"]) == (("50.0 %", "1 of 2"), ("0.5 %", ""))
    assert told["of the twin's, same threshold"] == ("1.0 %", "1 of 2")


def test_along_the_share_of_poison_each_trigger_has_a_line(study: Study) -> None:
    found = along_shares(scored(study))
    assert list(found) == ["MMCL · trigger=patch", "MMCL · trigger=warp"]
    assert found["MMCL · trigger=patch"]["k_dist"] == {0.01: ([0.6, 0.8], [0.01, 0.02]), 0.1: ([0.3, 0.5], [0.01, 0.02])}
    assert found["MMCL · trigger=warp"]["k_dist"][0.1].auroc == [0.2, 0.4]
    drawn = auroc_by_share(found)
    assert [ax.get_title() for ax in drawn.axes] == [
        *("MMCL · trigger=patch", "MMCL · trigger=warp"),
        *("MMCL · trigger=patch, its twin", "MMCL · trigger=warp, its twin"),
    ]
    lines = [[(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines[:1]] for ax in drawn.axes]  # type: ignore[arg-type]
    assert lines[0] == [([1.0, 10.0], pytest.approx([0.7, 0.4]))]
    assert lines[3] == [([1.0, 10.0], pytest.approx([1.5, 1.5]))]


def test_one_share_of_poison_is_no_line(study: Study) -> None:
    alone = [one for one in scored(study) if one.poisoned == 10]
    assert along_shares(alone) == {}
    for share, record in enumerate(study.records, start=1):  # as where a detector's pairs were left out of each seed
        del record.run.swept["attack.poison.fraction"]
        record.detection = record.detection and record.detection.model_copy(update={"poisoned": share})
    assert along_shares(scored(study)) == {}, "nobody asked for these shares"


def test_without_a_twin_there_are_no_panels_of_it(study: Study) -> None:
    for record in study.records:
        assert record.detection is not None
        record.detection.detectors[0].twin.clear()
    assert len(auroc_by_share(along_shares(scored(study))).axes) == 2
