"""How sure a number is: intervals for rates, means and differences, tests of a difference. Pure functions, seeded."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, combinations
from math import comb, isfinite
from statistics import fmean
from typing import NamedTuple

import numpy as np

DRAWS = 2_000  # resamplings of a bootstrap
MOST = 200_000  # divisions into two groups that are all looked at: 10 against 10 have 184,756
DRAWN = 20_000  # of more than these so many are drawn
CHUNK = 1 << 15  # divisions at once
TRIALS, LOOKED = 1_000, 2_000  # simulated studies, and divisions that the test of each looks at
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
    as much. Every division if there are at most 200,000, else 20,000 at random. ValueError of a value that is not finite.

    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations", Suppl. JRSS 4(1), 1937;
    drawn divisions: Phipson and Smyth, "Permutation p-values should never be zero", SAGMB 9(1), 2010.
    """
    # not scipy.stats.permutation_test, which refuses a group of one value: one seed each is our commonest case
    apart, _ = _apart(tuple(first), tuple(second), seed)
    ways = comb(len(first) + len(second), len(first))
    p = float(np.mean(np.abs(apart) >= abs(apart[0]) - SAME))
    return Test(p, smallest(len(first), len(second)), ways <= MOST)


def smallest(size: int, rest: int) -> float:
    """The smallest p that `permutation` can give groups of these sizes."""
    least = min(1.0, (2 if size == rest else 1) / comb(size + rest, size))
    return least if comb(size + rest, size) <= MOST else max(least, 1 / (1 + DRAWN))


def inversion(first: Sequence[float], second: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """The interval of a difference of means: every shift of the first group that `permutation` does not refuse, on the same
    divisions, without approximation; None where groups are so small that it refuses none.

    A division that keeps k of the first group's m values, and so has n places for others, differs by a - c d once the first
    group is less by d, c = k/m - (m - k)/n. That is as much as the groups themselves, a0 - d, exactly for d between
    (a0 - a) / (1 - c) and (a0 + a) / (1 + c); so the interval's ends are order statistics of these. After Pitman, as above.
    """
    apart, follows = _apart(tuple(first), tuple(second), seed)
    ends = _inverted(apart, follows, 1 - confidence)
    return None if ends is None else Interval(float(ends[0]) - SAME, float(ends[1]) + SAME)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of each of several tests, so adjusted that with all those at or below a level together the chance of one false
    finding is at most that level.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6(2), 1979.
    """
    out, least = [0.0] * len(ps), 0.0
    for place, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - place) * ps[at]))
        out[at] = least
    return out


def detectable(
    spread: float, sizes: tuple[int, int], level: float = 0.05, power: float = 0.8, seed: int = 0
) -> float | None:
    """The smallest difference of means that `permutation` finds at this level with this power in groups of these sizes whose
    values have this standard deviation; None if there is none, however large. Simulated: normal values, 1,000 times, at
    most 2,000 divisions each; it grows with the spread in proportion."""
    factor = _detectable(*sorted(sizes), level, power, seed)
    return None if factor is None else spread * factor


@lru_cache(maxsize=64)
def _detectable(size: int, rest: int, level: float, power: float, seed: int) -> float | None:
    if smallest(size, rest) > level:
        return None
    places = _divisions(size, rest, LOOKED, LOOKED, seed)
    inside = np.zeros((len(places), size + rest))
    np.put_along_axis(inside, places.astype(np.int64), 1.0, axis=1)
    values = np.random.default_rng(seed).standard_normal((TRIALS, size + rest))
    ends = _inverted(values @ (inside / size - (1 - inside) / rest).T, _follows(places, size, rest), level)
    # a shift is found if none is refused: where it is larger than the lower end without it is low
    return None if ends is None else float(np.quantile(-ends[0], power))


@lru_cache(maxsize=2)  # a difference's test and its interval look at the same
def _apart(first: tuple[float, ...], second: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each division, the groups' own first: the difference of means, and by how much of a shift of the first group it
    follows; float64 [N] each. ValueError of an empty group or of a value that is not finite."""
    if not first or not second:
        raise ValueError("no test without values in both groups")
    if len(first) > len(second):
        apart, follows = _apart(second, first, seed)
        return -apart, follows
    everything = np.asarray([*first, *second], dtype=np.float64)
    if not np.isfinite(everything).all():
        raise ValueError("no test of a value that is not finite")
    size, rest = len(first), len(second)
    places = _divisions(size, rest, MOST, DRAWN, seed)
    parts = [everything[places[at : at + CHUNK]].sum(1) for at in range(0, len(places), CHUNK)]
    sums = np.concatenate(parts)
    return sums / size - (float(everything.sum()) - sums) / rest, _follows(places, size, rest)


@lru_cache(maxsize=3)
def _divisions(size: int, rest: int, most: int, drawn: int, seed: int) -> np.ndarray:
    """int32 [N, size]: the places of the first group in each division, the groups' own first: all divisions if there are at
    most so many, else that one and so many at random."""
    if comb(size + rest, size) <= most:
        flat = chain.from_iterable(combinations(range(size + rest), size))
        return np.fromiter(flat, np.int32).reshape(-1, size)
    generator = np.random.default_rng(seed)
    at_random = [generator.permutation(size + rest)[:size] for _ in range(drawn)]
    return np.asarray([np.arange(size), *at_random], dtype=np.int32)


def _follows(places: np.ndarray, size: int, rest: int) -> np.ndarray:
    """float64 [N]: by how much the difference of a division's means grows with the first group's values."""
    kept = (places < size).sum(1)
    return np.asarray(kept / size - (size - kept) / rest)


def _inverted(apart: np.ndarray, follows: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The lowest and the highest shift that is not refused, of each row of differences [..., N]; None if all are not."""
    moves = np.abs(follows) < 1 - SAME  # the others differ as much whatever the shift
    own, others, shares = apart[..., :1], apart[..., moves], follows[moves]
    ends = np.stack([(own - others) / (1 - shares), (own + others) / (1 + shares)])
    refused = int(level * len(follows) + SAME) - int((~moves).sum())
    if refused < 0:
        return None
    lows, highs = np.partition(ends.min(0), refused, axis=-1), np.partition(-ends.max(0), refused, axis=-1)
    return lows[..., refused], -highs[..., refused]
