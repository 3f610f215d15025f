"""How two ways of pre-training differ once cleaned, and whether that many seeds can show it."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from measures.frontier import CAP
from measures.interval import Interval, Test, bootstrap_of, permutation
from report.scores import Mean, Score, mean_of

HEADLINE = f"best_top1_at_asr_{CAP:g}"
LEVEL = 0.05  # p at or below it is called significant


class Difference(NamedTuple):
    """Of the best accuracy at ASR <= 5 %, between two ways that one cleaner cleaned: the first's mean less the second's."""

    cleaner: str
    ways: tuple[str, str]
    means: tuple[Mean, Mean]
    value: float | None
    interval: Interval | None
    test: Test | None


def differences(found: Sequence[Score]) -> list[Difference]:
    """Between every two ways of pre-training that one cleaner cleaned."""
    values: dict[str, dict[str, list[float | None]]] = {}
    for score in found:
        way, cleaner = score.group
        values.setdefault(cleaner, {}).setdefault(way, []).append(score.numbers[HEADLINE].value)
    return [
        _difference(cleaner, (one, other), ways[one], ways[other])
        for cleaner, ways in values.items()
        for one, other in combinations(ways, 2)
    ]


def _difference(cleaner: str, ways: tuple[str, str], one: list[float | None], other: list[float | None]) -> Difference:
    means = (mean_of(one), mean_of(other))
    a, b = ([value for value in some if value is not None] for some in (one, other))
    if not a or not b:
        return Difference(cleaner, ways, means, None, None, None)
    several = len(a) > 1 and len(b) > 1
    interval = bootstrap_of([a, b], lambda groups: fmean(groups[0]) - fmean(groups[1])) if several else None
    return Difference(cleaner, ways, means, fmean(a) - fmean(b), interval, permutation(a, b))


def sentence(one: Difference) -> str:
    """The difference in words, which claim no more than so many seeds allow."""
    (first, second), (a, b), test = one.ways, one.means, one.test
    what = f"{one.cleaner}, best top-1 at ASR ≤ {100 * CAP:g} %, {first} less {second}"
    seeds = f"{a.known} of {a.of} and {b.known} of {b.of} seeds reach that ASR"
    if one.value is None or test is None:
        return f"{what}: no difference to state; {seeds}."
    between = f" [{100 * one.interval.low:+.1f}, {100 * one.interval.high:+.1f}]" if one.interval else ""
    said = f"{what}: {100 * one.value:+.1f} points{between}; {seeds}"
    if a.known < a.of or b.known < b.of:
        said += ", and only those are compared"
    if test.smallest == 1:
        return f"{said}. With one seed each no test can tell that from chance."
    if test.smallest > LEVEL:
        return (
            f"{said}. Permutation test: p = {test.p:.2g}; with {a.known} and {b.known} seeds no p below {test.smallest:.2g} "
            f"is possible, so no difference, however large, can be called significant at {LEVEL:g}."
        )
    word = "significant" if test.p <= LEVEL else "not significant"
    return f"{said}. Permutation test: p = {test.p:.2g}, {word} at {LEVEL:g}."
