"""How well scores tell poisoned pairs from clean ones: numbers of a ranking, its curve, and what a budget buys.

Ties are taken as if their order were drawn: a tie counts half in AUROC, and a budget that ends within equal scores gets
their mean share. So constant scores have AUROC 1/2 and, at any budget, the precision of a draw.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BUDGETS = (0.001, 0.01, 0.05, 0.1)  # shares of all pairs
TPR = 0.95
POINTS = 200  # of a curve that is kept, at most
BINS = 60


class Ranked(NamedTuple):
    """Scores in groups of equal ones, highest first: how many poisoned and how many clean pairs have at least each score."""

    thresholds: np.ndarray  # float64 [G]
    hits: np.ndarray  # int64 [G]
    alarms: np.ndarray  # int64 [G]

    @property
    def tpr(self) -> np.ndarray:
        """float64 [G + 1]: the share of poisoned pairs found, from 0."""
        return np.concatenate([[0.0], self.hits / self.hits[-1]])

    @property
    def fpr(self) -> np.ndarray:
        """float64 [G + 1]: the share of clean pairs found, from 0."""
        return np.concatenate([[0.0], self.alarms / self.alarms[-1]])


def ranked(scores: np.ndarray, poisoned: np.ndarray) -> Ranked:
    """The ranking of finite scores (float64 [N]); `poisoned` bool [N], some and not all; ValueError otherwise."""
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if poisoned.all() or not poisoned.any():
        raise ValueError("a ranking needs poisoned and clean pairs")
    order = np.argsort(-scores, kind="stable")
    values, marks = scores[order], poisoned[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    hits = np.cumsum(marks)[ends]
    return Ranked(values[ends], hits, ends + 1 - hits)


def numbers(ranking: Ranked) -> dict[str, float]:
    """`auroc`; `average_precision`; `fpr95`, the least share of clean pairs flagged where 95 % of the poisoned ones are;
    `error95`, the share of all pairs that are then flagged wrongly or missed; `precision_0.001`, `recall_0.001` and so on of
    BUDGETS."""
    hits, alarms, tpr, fpr = ranking.hits, ranking.alarms, ranking.tpr, ranking.fpr
    found = np.diff(np.concatenate([[0], hits]))
    out = {
        "auroc": float(np.trapezoid(tpr, fpr)),
        "average_precision": float((found * (hits / (hits + alarms))).sum() / hits[-1]),
    }
    at = int(np.argmax(hits >= TPR * hits[-1] - 1e-9)) + 1
    out["fpr95"] = float(fpr[at])
    out["error95"] = float((hits[-1] * (1 - tpr[at]) + alarms[-1] * fpr[at]) / (hits[-1] + alarms[-1]))
    for share in BUDGETS:
        count = number_at(share, int(hits[-1] + alarms[-1]))
        caught = _hits_within(ranking, count)
        out |= {f"precision_{share:g}": caught / count, f"recall_{share:g}": caught / float(hits[-1])}
    return out


def number_at(share: float, pairs: int) -> int:
    """How many of so many pairs a share is: the nearest whole number, at least 1."""
    return max(1, min(pairs, int(share * pairs + 0.5)))


def _hits_within(ranking: Ranked, count: int) -> float:
    """The poisoned pairs among the first so many, on average over the orders of ties."""
    totals = np.concatenate([[0], ranking.hits + ranking.alarms])
    return float(np.interp(count, totals, np.concatenate([[0], ranking.hits])))


def curve(ranking: Ranked) -> list[tuple[float, float]]:
    """(FPR, TPR) from (0, 0) to (1, 1), at most POINTS of them: where either moves by a step."""
    fpr, tpr = ranking.fpr, ranking.tpr
    if len(fpr) > POINTS:
        half = POINTS // 2
        grid = np.linspace(0, 1, half)
        kept = [0, len(fpr) - 1, *np.searchsorted(fpr, grid), *np.searchsorted(tpr, grid)]
        at = np.unique(np.clip(kept, 0, len(fpr) - 1))
        fpr, tpr = fpr[at], tpr[at]
    return list(zip(fpr.tolist(), tpr.tolist(), strict=True))


def histogram(scores: np.ndarray, poisoned: np.ndarray) -> tuple[list[float], list[int], list[int]]:
    """(BINS + 1 edges, counts of clean pairs, counts of poisoned ones) of finite scores; the outer bins hold what lies
    beyond the 0.1 % and 99.9 % quantiles of either class."""
    ends = [np.quantile(part, (0.001, 0.999)) for part in (scores[~poisoned], scores[poisoned]) if len(part)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, BINS + 1)
    inside = np.clip(scores, low, high)
    counts = [np.histogram(inside[part], edges)[0].tolist() for part in (~poisoned, poisoned)]
    return edges.tolist(), counts[0], counts[1]
