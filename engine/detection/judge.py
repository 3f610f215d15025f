"""What is said of scores: what a budget flags, how well they tell poisoned pairs, how many of the twin's they flag."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.poison_plan import PoisonPlan
from data.refusal import UserError
from measures.detectors.budget import Budget, Flagged, flagged
from measures.detectors.order import order_of
from measures.detectors.ranking import BUDGETS, curve, histogram, number_at, numbers, ranked
from records.detection import FOLDER, DetectionJson, DetectorResult
from records.scores import SCORES, read_scores


def attacks_of(plan: PoisonPlan | None, samples: np.ndarray) -> np.ndarray:
    """int64 [N]: which attack (from 0) poisons each sample; -1: none."""
    out = np.full(len(samples), -1, np.int64)
    if plan is not None:
        places = {sample: entry.attack for sample, entry in plan.entries.items()}
        for row in np.flatnonzero(plan.chosen[samples]):
            out[row] = places[int(samples[row])]
    return out


def result_of(
    title: str, kind: str, scores: np.ndarray, attacks: np.ndarray, taken: Flagged, more: Mapping[str, Any]
) -> DetectorResult:
    """What one detector's scores (float64 [N], NaN: none) say; `more` are fields that are known already."""
    known = ~np.isnan(scores)
    values, owners = scores[known], attacks[known]
    poisoned = owners >= 0
    facts: dict[str, Any] = dict(more)
    if poisoned.any() and not poisoned.all():
        ranking = ranked(values, poisoned)
        facts |= {"numbers": numbers(ranking), "order": order_of(values, owners)}
        if not facts["order"]:
            facts["curve"] = curve(ranking)
        facts["poisoned_flagged"] = int((attacks[taken.pairs] >= 0).sum())
        names = np.unique(owners[poisoned])
        if len(names) > 1:
            parts = {int(name): (owners == name) | ~poisoned for name in names}
            facts["attacks"] = {
                str(name + 1): numbers(ranked(values[part], poisoned[part])) for name, part in parts.items()
            }  # fmt: skip
    if len(values):
        ordered = np.sort(values)[::-1]
        facts["thresholds"] = {f"{share:g}": float(ordered[number_at(share, len(ordered)) - 1]) for share in BUDGETS}
        edges, facts["clean"], facts["poisoned"] = histogram(values, poisoned)
        facts["edges"] = [edges[0], edges[-1]]
    threshold = taken.threshold if np.isfinite(taken.threshold) else 0.0
    return DetectorResult(
        title=title, kind=kind, scored=len(values), flagged=len(taken.pairs), threshold=threshold, **facts
    )  # fmt: skip


def flags_of(scores: Mapping[str, np.ndarray], order: np.ndarray, budget: Budget) -> dict[str, Flagged]:
    """What the budget takes of each detector's scores."""
    return {title: flagged(values, order, budget) for title, values in scores.items()}


def against_twin(result: DetectionJson, budget: Budget, twin: Path) -> DetectionJson:
    """The same, each detector with the shares of the twin's pairs that it flags; UserError if the twin has other detectors.
    Of another program's scores nothing is told: it scored the poisoned pairs, never the twin's.

    At a share or a count the threshold is that of the poisoned run; `rule` is what the twin's own scores give."""
    theirs = DetectionJson.read(twin)
    if theirs is None:
        raise UserError(f"{twin} has no scores of its pairs; detect there first")
    ours = [one for one in result.detectors if one.kind != "foreign"]
    lacking = [one.title for one in ours if theirs.of(one.title) is None]
    if lacking:
        raise UserError(f"{twin} was not scored by {', '.join(lacking)}; detect there with the same detectors")
    bounds = {one.title: _bounds(one) for one in ours}
    above = {title: np.zeros(len(values), np.int64) for title, values in bounds.items()}
    for _, row in read_scores(twin / FOLDER / SCORES):
        if row.kind in bounds:
            strict = budget.outlier is not None
            values = bounds[row.kind]
            above[row.kind] += row.score >= values
            above[row.kind][0] -= int(strict and row.score == values[0])
    told: dict[str, dict[str, float]] = {}
    for one in ours:
        their = theirs.of(one.title)
        assert their is not None
        shares = (above[one.title] / max(1, their.scored)).tolist()
        told[one.title] = dict(zip(("threshold", *one.thresholds), shares, strict=True))
        told[one.title]["rule"] = their.flagged / max(1, their.scored)
    detectors = [one.model_copy(update={"twin": told.get(one.title, {})}) for one in result.detectors]
    return result.model_copy(update={"detectors": detectors, "twin": twin.name})


def _bounds(one: DetectorResult) -> np.ndarray:
    return np.array([one.threshold, *one.thresholds.values()])
