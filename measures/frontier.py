"""The frontier: which of many (attack success, accuracy) points are worth having.

Pure functions over points; a point one of whose rates is not finite qualifies for nothing.
"""

from collections.abc import Iterable
from itertools import pairwise
from math import fsum, isfinite
from typing import Generic, NamedTuple, TypeVar

Label = TypeVar("Label")

CAP = 0.05  # attack success at or below this counts as cleaned, as in the paper
CAPS = (0.01, 0.05, 0.10, 0.20)
FLOOR = 0.95  # of the start's accuracy


class FrontierPoint(NamedTuple, Generic[Label]):
    """One evaluation of one model; both rates are fractions in [0, 1], `label` is the caller's own."""

    asr: float
    top1: float
    label: Label


def best_accuracy(points: Iterable[FrontierPoint[Label]], cap: float) -> FrontierPoint[Label] | None:
    """The most accurate point whose attack success is at most `cap`, or None.

    Of equally accurate points the one with the lower attack success wins, then the earlier one.
    """
    fit = [p for p in points if p.asr <= cap and _is_finite(p)]
    return max(fit, key=lambda p: (p.top1, -p.asr), default=None)


def lowest_asr(points: Iterable[FrontierPoint[Label]], floor: float) -> FrontierPoint[Label] | None:
    """The point of lowest attack success whose accuracy is at least `floor`, or None.

    Of points with equal attack success the more accurate one wins, then the earlier one.
    """
    fit = [p for p in points if p.top1 >= floor and _is_finite(p)]
    return min(fit, key=lambda p: (p.asr, -p.top1), default=None)


def worth(points: Iterable[FrontierPoint[Label]], cap: float) -> float | None:
    """One number for what a cleaning reached, to search by: the best accuracy at attack success <= cap; if there is none,
    how far the lowest attack success is from the cap, which is negative; None of no points."""
    known = [p for p in points if _is_finite(p)]
    best = best_accuracy(known, cap)
    if best is not None:
        return best.top1
    return max((cap - p.asr for p in known), default=None)


def pareto(points: Iterable[FrontierPoint[Label]]) -> list[FrontierPoint[Label]]:
    """The points that no other point beats, from low to high attack success (and accuracy).

    A point is beaten when another has no higher attack success and no lower accuracy, and one of the
    two strictly better. Of points with equal rates the earliest stays.
    """
    front: list[FrontierPoint[Label]] = []
    for p in sorted((p for p in points if _is_finite(p)), key=lambda p: (p.asr, -p.top1)):
        if not front or p.top1 > front[-1].top1:
            front.append(p)
    return front


def hypervolume(points: Iterable[FrontierPoint[Label]]) -> float:
    """The share of the unit square of (1 - attack success, accuracy) that the points dominate, in [0, 1]; 0 of no points.

    It is the best accuracy under a cap, averaged over all caps from 0 to 1. Zitzler and Thiele, "Multiobjective
    evolutionary algorithms", IEEE Trans. Evol. Comput. 3(4), 1999, with the corner (ASR 1, accuracy 0) for reference.
    """
    front = pareto(points)
    ends = [*(p.asr for p in front), 1.0]
    return fsum(p.top1 * (right - left) for p, (left, right) in zip(front, pairwise(ends), strict=True))


def _is_finite(point: FrontierPoint[Label]) -> bool:
    """Whether both rates are numbers."""
    return isfinite(point.asr) and isfinite(point.top1)
