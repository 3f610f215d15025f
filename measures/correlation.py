"""Whether two numbers rise together: a rank correlation and how sure it is. Pure functions, seeded."""

from collections.abc import Sequence
from math import isfinite, nan
from typing import NamedTuple

import numpy as np

from measures.interval import DRAWS, Interval

Pair = tuple[float, float]


class Correlation(NamedTuple):
    """Spearman's rho in [-1, 1] and its interval; None where draws from so few groups say nothing."""

    rho: float
    interval: Interval | None


def spearman(groups: Sequence[Sequence[Pair]], seed: int = 0, confidence: float = 0.95) -> Correlation:
    """The rank correlation of all pairs, and its percentile interval where whole groups are drawn again, and of each the
    pairs in it: pairs of a group, seeds of one way of training, are alike. The same for the same seed; ValueError of fewer
    than three pairs, of a value that is not finite, or where one of the two numbers is always the same.

    C. Spearman, "The proof and measurement of association between two things", Am. J. Psychol. 15(1), 1904; draws in two
    stages: Davison and Hinkley, "Bootstrap methods and their application", section 3.8, 1997.
    """
    members = [np.asarray(group, np.float64).reshape(-1, 2) for group in groups if len(group)]
    everything = np.concatenate(members) if members else np.empty((0, 2))
    if len(everything) < 3:
        raise ValueError(f"no correlation of {len(everything)} pairs; three are needed")
    if not np.isfinite(everything).all():
        raise ValueError("no correlation of a value that is not finite")
    rho = _rho(everything)
    if not isfinite(rho):
        raise ValueError("no correlation with a number that is always the same")
    generator = np.random.default_rng(seed)
    drawn = [_rho(_again(members, generator)) for _ in range(DRAWS)] if len(members) > 1 else []
    known = [value for value in drawn if isfinite(value)]
    if not known:
        return Correlation(rho, None)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Correlation(rho, Interval(float(low), float(high)))


def _again(members: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """[n, 2]: as many groups drawn with repetition, and of each as many of its pairs."""
    chosen = [members[at] for at in generator.integers(len(members), size=len(members))]
    return np.concatenate([group[generator.integers(len(group), size=len(group))] for group in chosen])


def _rho(pairs: np.ndarray) -> float:
    """Pearson's correlation of ranks, ties sharing their mean rank; nan if a column has one value."""
    from scipy.stats import rankdata  # here, because it takes a second to import

    ranks = rankdata(pairs, axis=0)
    ranks -= ranks.mean(0)
    spread = float(np.sqrt((ranks**2).sum(0).prod()))
    return float((ranks[:, 0] * ranks[:, 1]).sum() / spread) if spread else nan
