"""measures.interval: answers worked out by hand, and laws that hold for any values."""

import math
from collections.abc import Callable
from itertools import combinations
from statistics import fmean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from measures.interval import bootstrap, detectable, holm, inversion, permutation, wilson

values = st.lists(st.floats(0, 1), min_size=1, max_size=8)
few = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=4)


def test_wilson_by_hand() -> None:
    low, high = wilson(5, 10)
    assert low == pytest.approx(0.2366, abs=1e-4)
    assert high == pytest.approx(0.7634, abs=1e-4)
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)  # z^2 / (n + z^2)
    with pytest.raises(ValueError):
        wilson(0, 0)
    with pytest.raises(ValueError):
        wilson(11, 10)


@given(st.integers(1, 50_000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_wilson_holds_the_rate_and_mirrors(trials: tuple[int, int]) -> None:
    successes, of = trials
    low, high = wilson(successes, of)
    assert 0 <= low <= successes / of <= high <= 1
    other = wilson(of - successes, of)
    assert (1 - other.high, 1 - other.low) == pytest.approx((low, high), abs=1e-9)
    wide = wilson(successes, of, 0.99)
    assert wide.low <= low
    assert high <= wide.high


def test_bootstrap_by_hand() -> None:
    assert bootstrap([[0.25]]) == (0.25, 0.25)
    # of two values the mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: both ends are reached
    assert bootstrap([[0.0, 1.0]], seed=3) == (0.0, 1.0)
    assert bootstrap([[0.0, 0.0, 1.0]], median, seed=3) == (0.0, 1.0)
    with pytest.raises(ValueError):
        bootstrap([])
    with pytest.raises(ValueError):
        bootstrap([[0.5], []])


@settings(max_examples=30, deadline=None)
@given(values, st.integers(0, 9))
def test_bootstrap_is_repeatable_and_within_the_values(some: list[float], seed: int) -> None:
    low, high = bootstrap([some], seed=seed)
    assert (low, high) == bootstrap([some], seed=seed)
    assert min(some) - 1e-12 <= low <= high <= max(some) + 1e-12


def test_bootstrap_of_two_groups_by_hand() -> None:
    assert bootstrap([[0.5, 0.5], [0.2]], lambda first, second: fmean(first) - fmean(second)) == pytest.approx((0.3, 0.3))


def test_permutation_by_hand() -> None:
    apart = permutation([0.1, 0.2, 0.3], [0.7, 0.8, 0.9])
    assert apart == (pytest.approx(0.1), pytest.approx(0.1), True), "3 against 3: 2 of 20 divisions, never fewer"
    assert permutation([1.0], [0.0, 0.0, 0.0]).p == pytest.approx(0.25)
    assert permutation([0.5, 0.5], [0.5, 0.5]).p == 1
    with pytest.raises(ValueError):
        permutation([], [1.0])


@settings(max_examples=60, deadline=None)
@given(few, few)
def test_permutation_is_a_count_of_divisions(first: list[float], second: list[float]) -> None:
    every, seen = [*first, *second], abs(fmean(first) - fmean(second))
    hits = total = 0
    for chosen in combinations(range(len(every)), len(first)):
        a = [every[n] for n in chosen]
        b = [every[n] for n in range(len(every)) if n not in chosen]
        hits, total = hits + (abs(fmean(a) - fmean(b)) >= seen - 1e-9), total + 1
    test = permutation(first, second)
    assert test.p == pytest.approx(hits / total)
    assert test.p >= test.smallest - 1e-12
    assert permutation(second, first).p == pytest.approx(test.p)


def test_ten_against_ten_look_at_every_division() -> None:
    """Of 184,756 only the two in which the groups are whole differ as much; swapping one pair of neighbours, two more."""
    low, high = [n / 100 for n in range(10)], [n / 100 for n in range(10, 20)]
    assert permutation(low, high) == (pytest.approx(2 / 184_756), pytest.approx(2 / 184_756), True)
    assert permutation([*low[:9], 0.10], [0.09, *high[1:]]).p == pytest.approx(4 / 184_756)


def test_inversion_by_hand() -> None:
    """{3, 5} less {0, 1} is a0 = 3.5. Each of the four mixed divisions keeps one of two, so c = 0, and differs by its sum
    less 4.5: {3, 0} -1.5, {3, 1} -0.5, {5, 0} 0.5, {5, 1} 1.5, which is as much for d between 3.5 - a and 3.5 + a: [2, 5],
    [3, 4], [3, 4], [2, 5]. The two unmixed ones always do. So p is 2/6 outside [2, 5], 4/6 inside it, 1 inside [3, 4]."""
    first, second = [3.0, 5.0], [0.0, 1.0]
    assert inversion(first, second, 1 - 0.5) == pytest.approx((2, 5))
    assert inversion(first, second, 1 - 4 / 6) == pytest.approx((3, 4))
    assert inversion(first, second, 1 - 2 / 6) == pytest.approx((2, 5))
    assert inversion(first, second, 1 - 0.3) is None, "no shift has a p as low"
    assert inversion(second, first, 0.5) == pytest.approx((-5, -2))
    assert inversion([0.5] * 4, [0.2] * 4) == pytest.approx((0.3, 0.3))
    assert inversion([0.1, 0.2, 0.3], [0.7, 0.8, 0.9]) is None, "3 against 3 never reach 5 %"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=5), st.lists(st.floats(0, 1), min_size=3, max_size=4))
def test_an_interval_holds_the_shifts_that_the_test_does_not_refuse(first: list[float], second: list[float]) -> None:
    found = inversion(first, second, 0.8)
    assert found is not None
    low, high = found
    assert low <= fmean(first) - fmean(second) <= high
    for shift, inside in ((low - 1e-6, False), (low + 1e-9, True), (high - 1e-9, True), (high + 1e-6, False)):
        if low + 1e-9 <= high - 1e-9 or not inside:
            p = permutation([value - shift for value in first], second).p
            assert (p > 0.2) == inside, (shift, p)


def covered(sizes: tuple[int, int], trials: int, shift: float = 1.0) -> float:
    """How often the interval holds the true difference: of skewed values, the same but for the shift."""
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(trials):
        first, second = (draw.exponential(size=size) for size in sizes)
        found = inversion([*(first + shift)], [*second])
        assert found is not None
        hits += found.low <= shift <= found.high
    return hits / trials


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """At least 95 %, and with 5 against 5 at most 12 of 252 divisions are refused: 95.2 %; 3 standard errors below."""
    assert 0.952 - 3 * (0.048 * 0.952 / 800) ** 0.5 <= covered((5, 5), 800) < 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "trials"), [((10, 10), 1000), ((4, 9), 4000), ((10, 3), 4000), ((12, 12), 300)])
def test_intervals_of_other_sizes_hold_the_truth_as_often_as_they_say(sizes: tuple[int, int], trials: int) -> None:
    share = covered(sizes, trials)
    assert abs(share - 0.95) <= 0.007 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_holm_by_hand() -> None:
    """In order 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3, 0.9]) == pytest.approx([0.6, 0.9])
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    """Six true null hypotheses: an unadjusted p at or below 0.05 in 26 % of studies, an adjusted one in 5 %."""
    ps = np.random.default_rng(1).random((4000, 6))
    assert np.mean([min(holm([*row])) <= 0.05 for row in ps]) == pytest.approx(0.05, abs=0.012)


def test_the_detectable_difference_is_found_as_often_as_it_says() -> None:
    size = detectable(2.0, (5, 4))
    assert size is not None
    assert detectable(1.0, (4, 5)) == pytest.approx(size / 2)
    draw = np.random.default_rng(9)
    found = [permutation([*(2 * draw.normal(size=5) + size)], [*(2 * draw.normal(size=4))]).p <= 0.05 for _ in range(600)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_the_detectable_difference_is_near_that_of_a_t_test_and_none_is_where_no_p_is_small_enough() -> None:
    """Two groups of 10, level 0.05, power 80 %: 1.325 standard deviations by the noncentral t (Cohen 1988, table 2.3.5)."""
    assert detectable(1.0, (10, 10)) == pytest.approx(1.325, rel=0.06)
    assert detectable(1.0, (10, 10), level=0.05 / 6) > detectable(1.0, (10, 10))  # type: ignore[operator]
    assert detectable(1.0, (3, 3)) is None
    assert detectable(1.0, (4, 4), level=0.05 / 6) is None


def test_many_values_are_drawn_with_a_seed() -> None:
    first, second = [n / 100 for n in range(12)], [n / 100 + 0.5 for n in range(12)]
    test = permutation(first, second, seed=1)
    assert not test.exact
    assert test == permutation(first, second, seed=1)
    assert test.p == pytest.approx(1 / 20_001)
    assert permutation(first, first, seed=1).p == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "act",
    [lambda group: bootstrap([group]), lambda group: permutation(group, [0.5]), lambda group: permutation([0.5], group)],
)
def test_what_is_not_finite_has_no_interval_and_no_test(act: Callable[[list[float]], object], odd: float) -> None:
    for at in range(3):
        with pytest.raises(ValueError, match="not finite"):
            act([odd if i == at else 0.5 for i in range(3)])
