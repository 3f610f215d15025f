"""How sure a number is: intervals for rates and means, and a test of a difference. Pure functions, seeded."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb, sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np

DRAWS = 2_000  # resamplings of a bootstrap
MOST = 20_000  # divisions into two groups that are all looked at; beyond it as many are drawn
SAME = 1e-12  # differences closer than this are equal


class Interval(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float


class Test(NamedTuple):
    """p of a test, the smallest p that groups of these sizes can reach, and whether every division was looked at."""

    p: float
    smallest: float
    exact: bool


def wilson(successes: int, of: int, confidence: float = 0.95) -> Interval:
    """The score interval of a rate of `successes` in `of` trials, within [0, 1]; ValueError if there were no trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22(158), 1927.
    """
    if not 0 <= successes <= of or of == 0 or not 0 < confidence < 1:
        raise ValueError(f"no interval for {successes} of {of} at confidence {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, shrunk = successes / of, 1 + z * z / of
    middle = (rate + z * z / (2 * of)) / shrunk
    half = z / shrunk * sqrt(rate * (1 - rate) / of + z * z / (4 * of * of))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if successes == of else min(1.0, middle + half))


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The percentile interval of a statistic of the values, the same for the same seed; ValueError of no values.

    B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7(1), 1979. Of a handful of values it is
    too narrow, and of one value it has no width.
    """
    return bootstrap_of([values], lambda groups: statistic(groups[0]), seed, confidence)


def bootstrap_of(
    groups: Sequence[Sequence[float]],
    statistic: Callable[[list[list[float]]], float],
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The percentile interval of a statistic of several groups, each drawn again by itself; ValueError of an empty group."""
    if not groups or not all(len(group) for group in groups):
        raise ValueError("no interval without values")
    generator = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    drawn = [array[generator.integers(0, len(array), (DRAWS, len(array)))].tolist() for array in arrays]
    found = [statistic(list(again)) for again in zip(*drawn, strict=True)]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def permutation(one: Sequence[float], other: Sequence[float], seed: int = 0) -> Test:
    """The two-sided test of a difference of means: how often a division of all values into groups of these sizes differs
    as much. Every division if there are at most 20,000, else as many at random.

    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations", Suppl. JRSS 4(1), 1937;
    drawn divisions: Phipson and Smyth, "Permutation p-values should never be zero", SAGMB 9(1), 2010.
    """
    if not one or not other:
        raise ValueError("no test without values in both groups")
    everything = np.asarray([*one, *other], dtype=np.float64)
    total, size, rest = float(everything.sum()), len(one), len(other)
    ways = comb(size + rest, size)
    smallest = min(1.0, (2 if size == rest else 1) / ways)

    def apart(sums: np.ndarray) -> np.ndarray:
        return np.abs(sums / size - (total - sums) / rest)

    seen = apart(np.asarray([everything[:size].sum()]))[0] - SAME
    if ways <= MOST:
        chosen = np.asarray(list(combinations(range(size + rest), size)))
        return Test(float(np.mean(apart(everything[chosen].sum(1)) >= seen)), smallest, True)
    generator = np.random.default_rng(seed)
    sums = np.asarray([generator.permutation(everything)[:size].sum() for _ in range(MOST)])
    return Test((1 + int(np.sum(apart(sums) >= seen))) / (1 + MOST), max(smallest, 1 / (1 + MOST)), False)
