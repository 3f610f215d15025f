"""measures.frontier: answers worked out by hand, and laws that hold for any points."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from measures.frontier import FrontierPoint, best_accuracy, hypervolume, lowest_asr, pareto

POINTS = [
    FrontierPoint(0.99, 0.72, "start"),
    FrontierPoint(0.50, 0.70, "a"),
    FrontierPoint(0.05, 0.60, "b"),
    FrontierPoint(0.04, 0.60, "c"),
    FrontierPoint(0.01, 0.40, "d"),
    FrontierPoint(0.60, 0.65, "beaten by a"),
]

rates = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1)
clouds = st.lists(st.tuples(rates, rates), max_size=30).map(
    lambda pairs: [FrontierPoint(asr, top1, at) for at, (asr, top1) in enumerate(pairs)]
)


def test_best_accuracy_by_hand() -> None:
    assert best_accuracy(POINTS, 0.01) == FrontierPoint(0.01, 0.40, "d")
    assert best_accuracy(POINTS, 0.05) == FrontierPoint(0.04, 0.60, "c"), "the cap is included, the tie goes to c"
    assert best_accuracy(POINTS, 0.50) == FrontierPoint(0.50, 0.70, "a")
    assert best_accuracy(POINTS, 1.00) == FrontierPoint(0.99, 0.72, "start")
    assert best_accuracy(POINTS, 0.009) is None


def test_lowest_asr_by_hand() -> None:
    assert lowest_asr(POINTS, 0.0) == FrontierPoint(0.01, 0.40, "d")
    assert lowest_asr(POINTS, 0.60) == FrontierPoint(0.04, 0.60, "c")
    assert lowest_asr(POINTS, 0.65) == FrontierPoint(0.50, 0.70, "a")
    assert lowest_asr(POINTS, 0.73) is None
    assert lowest_asr([FrontierPoint(0.1, 0.5, "x"), FrontierPoint(0.1, 0.6, "y")], 0.5) == FrontierPoint(0.1, 0.6, "y")


def test_pareto_by_hand() -> None:
    assert [p.label for p in pareto(POINTS)] == ["d", "c", "a", "start"]
    assert pareto([]) == []
    assert pareto([FrontierPoint(0.1, 0.5, 1), FrontierPoint(0.1, 0.5, 2)]) == [FrontierPoint(0.1, 0.5, 1)]


def test_hypervolume_by_hand() -> None:
    # caps from 0.01 to 0.04 reach 0.40, to 0.50 0.60, to 0.99 0.70, to 1 0.72
    assert hypervolume(POINTS) == pytest.approx(0.03 * 0.40 + 0.46 * 0.60 + 0.49 * 0.70 + 0.01 * 0.72)
    assert hypervolume([]) == 0
    assert hypervolume([FrontierPoint(0.0, 1.0, "perfect")]) == 1


def test_not_a_number_qualifies_for_nothing() -> None:
    odd = (math.nan, math.inf, -math.inf)
    broken = [point for n in odd for point in (FrontierPoint(n, 0.5, "x"), FrontierPoint(0.0, n, "y"))]
    assert best_accuracy(broken, 1.0) is None
    assert lowest_asr(broken, 0.0) is None
    assert pareto(broken) == []
    assert best_accuracy([*broken, FrontierPoint(0.2, 0.3, "z")], 1.0) == FrontierPoint(0.2, 0.3, "z")


@given(clouds, rates)
def test_best_accuracy_is_within_the_cap_and_unbeaten(points: list[FrontierPoint[int]], cap: float) -> None:
    best = best_accuracy(points, cap)
    fit = [p for p in points if p.asr <= cap]
    assert (best is None) == (not fit)
    if best is not None:
        assert best in fit
        assert best.top1 == max(p.top1 for p in fit)


@given(clouds, rates)
def test_lowest_asr_is_best_accuracy_seen_from_the_other_axis(points: list[FrontierPoint[int]], floor: float) -> None:
    found = lowest_asr(points, floor)
    fit = [p for p in points if p.top1 >= floor]
    assert (found is None) == (not fit)
    if found is not None:
        assert found in fit
        assert found.asr == min(p.asr for p in fit)


@given(clouds, rates, rates)
def test_a_looser_cap_never_costs_accuracy(points: list[FrontierPoint[int]], one: float, other: float) -> None:
    tight, loose = (best_accuracy(points, cap) for cap in sorted((one, other)))
    assert tight is None or (loose is not None and loose.top1 >= tight.top1)


@given(clouds)
def test_pareto_rises_on_both_axes_and_covers_every_point(points: list[FrontierPoint[int]]) -> None:
    front = pareto(points)
    assert all(p in points for p in front)
    assert all(low.asr < high.asr and low.top1 < high.top1 for low, high in pairwise(front))
    assert all(any(f.asr <= p.asr and f.top1 >= p.top1 for f in front) for p in points)


@given(clouds, rates, st.randoms(use_true_random=False))
def test_pareto_holds_every_answer_in_any_order(points: list[FrontierPoint[int]], cap: float, random: object) -> None:
    rates_of = {(p.asr, p.top1) for p in pareto(points)}
    shuffled = points[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {(p.asr, p.top1) for p in pareto(shuffled)} == rates_of
    best = best_accuracy(points, cap)
    assert best is None or (best.asr, best.top1) in rates_of
    cleanest = lowest_asr(points, cap)
    assert cleanest is None or (cleanest.asr, cleanest.top1) in rates_of


@given(clouds)
def test_hypervolume_is_the_area_counted_cell_by_cell(points: list[FrontierPoint[int]]) -> None:
    xs, ys = sorted({1 - p.asr for p in points} | {0.0}), sorted({p.top1 for p in points} | {0.0})
    area = 0.0
    for left, right in pairwise(xs):
        for low, high in pairwise(ys):
            if any(1 - p.asr >= right and p.top1 >= high for p in points):
                area += (right - left) * (high - low)
    assert hypervolume(points) == pytest.approx(area, abs=1e-9)


@given(clouds, rates, rates)
def test_hypervolume_never_falls_when_a_point_is_added(points: list[FrontierPoint[int]], asr: float, top1: float) -> None:
    assert hypervolume([*points, FrontierPoint(asr, top1, -1)]) >= hypervolume(points) - 1e-12
