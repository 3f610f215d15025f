"""How sure a number is: intervals for rates and means, and a test of a difference. Pure functions, seeded."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb, isfinite
from statistics import fmean
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
    from scipy.stats import binomtest  # here, because it takes a second to import

    if not 0 <= successes <= of or of == 0:
        raise ValueError(f"no interval for {successes} of {of}")
    interval = binomtest(successes, of).proportion_ci(confidence, "wilson")
    return Interval(float(interval.low), float(interval.high))


def bootstrap(
    groups: Sequence[Sequence[float]],
    statistic: Callable[..., float] = fmean,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The percentile interval of a statistic of one group of values or of several, each drawn again by itself; the same for
    the same seed; ValueError of an empty group or of a value that is not finite.

    B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7(1), 1979. Of a handful of values it is
    too narrow, and of one value it has no width.
    """
    from scipy.stats import bootstrap as resample

    if not groups or not all(len(group) for group in groups):
        raise ValueError("no interval without values")
    if not all(isfinite(value) for group in groups for value in group):
        raise ValueError("no interval of a value that is not finite")
    # scipy refuses a group of one value; twice the value gives the same draws
    samples = [[*group, *group] if len(group) == 1 else group for group in groups]
    drawn = resample(
        samples, statistic, n_resamples=DRAWS, vectorized=False, confidence_level=confidence, method="percentile", rng=seed
    )
    return Interval(float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def permutation(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Test:
    """The two-sided test of a difference of means: how often a division of all values into groups of these sizes differs
    as much. Every division if there are at most 20,000, else as many at random. ValueError of a value that is not finite.

    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations", Suppl. JRSS 4(1), 1937;
    drawn divisions: Phipson and Smyth, "Permutation p-values should never be zero", SAGMB 9(1), 2010.
    """
    # not scipy.stats.permutation_test, which refuses a group of one value: one seed each is our commonest case
    if not first or not second:
        raise ValueError("no test without values in both groups")
    everything = np.asarray([*first, *second], dtype=np.float64)
    if not np.isfinite(everything).all():
        raise ValueError("no test of a value that is not finite")
    total, size, rest = float(everything.sum()), len(first), len(second)
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
