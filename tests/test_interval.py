"""measures.interval: answers worked out by hand, and laws that hold for any values."""

import math
from collections.abc import Callable
from itertools import combinations
from statistics import fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from measures.interval import bootstrap, permutation, wilson

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
