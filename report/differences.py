"""Whether two ways of pre-training differ: of one cleaner, by what the oracle reaches and by what each rule chooses that
sees no ASR.

Means over seeds are compared by an exact permutation test; the interval is that test's, inverted; p is adjusted by Holm
over the cleaners of the study. A seed that reaches no point at ASR <= 5 % has no number, so what is left may differ by that
alone: such seeds are counted, and beside stands the same comparison in which each of them counts with an accuracy of 0,
that of a model that can't be used. A seed whose best model there is at chance has a number and counts with it: how many
such seeds there are is said.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean, variance
from typing import NamedTuple

from measures.interval import Interval, Test, detectable, holm, inversion, permutation
from report.controls import ends_of
from report.scores import BEST, RULES, Mean, Metric, Score, chosen_by, finite, mean_of
from report.seeds import at_chance_in

LEVEL = 0.05  # p at or below it is called significant
POWER = 0.8  # with which a detectable difference would have been found


class Comparison(NamedTuple):
    """Two groups of seeds: the first's mean less the second's, its 95 % interval (None where so few seeds give none), the
    test, its p by Holm over `tests` cleaners and the least that this could be, and the smallest difference that so many
    seeds, differing as they do, would show with a power of 80 % (None: none, however large, or they don't differ)."""

    seeds: tuple[int, int]
    value: float
    interval: Interval | None
    test: Test
    adjusted: float
    least: float
    tests: int
    detectable: float | None

    @property
    def between(self) -> str:
        """The difference in points with its interval."""
        return f"{100 * self.value:+.1f} points{ends_of(self.interval)}"

    @property
    def chance(self) -> str:
        """p, and by Holm if there are several tests."""
        return f"p = {self.test.p:.2g}" + (
            f", by Holm over {self.tests} cleaners {self.adjusted:.2g}" if self.tests > 1 else ""
        )

    @property
    def words(self) -> str:
        """What the test says, claiming no more than so many seeds allow."""
        a, b = self.seeds
        if self.test.smallest == 1:
            return "With one seed each no test can tell that from chance."
        if self.least > LEVEL:
            return (
                f"Permutation test: {self.chance}; with {a} and {b} seeds no p below {self.least:.2g} is possible, so no "
                f"difference, however large, can be called significant at {LEVEL:g}."
            )
        significance = "significant" if self.adjusted <= LEVEL else "not significant"
        shown = f" So many seeds would show {100 * self.detectable:.1f} points (power 80 %)." if self.detectable else ""
        return f"Permutation test: {self.chance}, {significance} at {LEVEL:g}.{shown}"


class Difference(NamedTuple):
    """Of one number between two ways that one cleaner cleaned: `compared` are the seeds that have it, and `counted` all of
    them, those without it as 0, where that is another comparison; None if a way has no seed to compare. `at_chance` are how
    many of each way's have it of a model at chance."""

    cleaner: str
    ways: tuple[str, str]
    means: tuple[Mean, Mean]
    compared: Comparison | None
    counted: Comparison | None = None
    at_chance: tuple[int, int] = (0, 0)

    @property
    def metric(self) -> Metric:
        """What differs."""
        return self.means[0].metric

    @property
    def value(self) -> float | None:
        """The difference between seeds that have the number."""
        return self.compared.value if self.compared else None

    @property
    def interval(self) -> Interval | None:
        """Its interval."""
        return self.compared.interval if self.compared else None

    @property
    def test(self) -> Test | None:
        """Its test."""
        return self.compared.test if self.compared else None

    @property
    def brief(self) -> str:
        """The difference in a few words: its size, its p, and of how many seeds it is, if some lack the number."""
        (a, b), found = self.means, self.compared
        lacking = f" ({a.known} of {a.of} and {b.known} of {b.of} seeds)" if a.known < a.of or b.known < b.of else ""
        return (f"{found.between}, {found.chance}" if found else "none") + lacking

    @property
    def sentence(self) -> str:
        """The difference in words."""
        (first, second), (a, b) = self.ways, self.means
        what = f"{self.cleaner}, {self.metric.label}, {first} less {second}"
        seeds = f"{a.known} of {a.of} and {b.known} of {b.of} seeds reach that ASR{self._chance}"
        if self.compared is None:
            words = f"{what}: no difference to state; {seeds}."
        else:
            only = ", and only those are compared" if a.known < a.of or b.known < b.of else ""
            words = f"{what}: {self.compared.between}; {seeds}{only}. {self.compared.words}"
        if self.counted is None:
            return words
        return f"{words} With the other seeds counted at 0 %: {self.counted.between}. {self.counted.words}"

    @property
    def _chance(self) -> str:
        """How many of each way's seeds that reach the ASR are at chance, with a space before it."""
        lost = [f"{n} of the {which}" for n, which in zip(self.at_chance, ("former", "latter"), strict=True) if n]
        return f" ({' and '.join(lost)} at chance)" if lost else ""


RULE_HEADS = ("cleaned by", "difference", "rule", "top-1", "ASR")


def rule_rows(found: Sequence[Difference]) -> list[list[str]]:
    """For a table under RULE_HEADS: of each cleaner, two ways and rule the differences of accuracy and of ASR, with p."""
    known = {(one.cleaner, one.ways, one.metric.name): one for one in found}
    rows = []
    for cleaner, ways in dict.fromkeys((one.cleaner, one.ways) for one in found):
        for rule in RULES:
            pair = [known.get((cleaner, ways, metric.name)) for metric in chosen_by(rule)[:2]]
            if any(pair):
                rows.append([cleaner, " less ".join(ways), rule, *(one.brief if one else "" for one in pair)])
    return rows


def differences(seeds: Sequence[Score]) -> list[Difference]:
    """Of the best accuracy at ASR <= 5 %, between every two ways of pre-training that one cleaner cleaned, under the same
    attack: a model's several attacks are no independent groups. Controls are none of these."""
    return _of(BEST, seeds)


def rule_differences(seeds: Sequence[Score]) -> list[Difference]:
    """The same of the accuracy and of the ASR of what each rule chooses that sees no ASR."""
    choices = [chosen_by(rule) for rule in RULES]
    return [one for choice in choices for metric in (choice.top1, choice.asr) for one in _of(metric, seeds)]


def _of(metric: Metric, seeds: Sequence[Score]) -> list[Difference]:
    groups: dict[str, dict[str, list[Score]]] = {}
    for score in seeds:
        if score.control is None and metric.name in score.numbers:
            way, cleaner = score.group
            groups.setdefault(cleaner, {}).setdefault(way, []).append(score)
    values = {
        cleaner: {way: [score.numbers[metric.name].value for score in members] for way, members in ways.items()}
        for cleaner, ways in groups.items()
    }
    attacks = {score.group[0]: score.attack for score in seeds}
    paired = {
        cleaner: [pair for pair in combinations(ways, 2) if attacks[pair[0]] == attacks[pair[1]]]
        for cleaner, ways in values.items()
    }
    pairs: dict[tuple[str, str], list[str]] = {}  # the cleaners of each pair of ways
    for cleaner, both_ways in paired.items():
        for pair in both_ways:
            pairs.setdefault(pair, []).append(cleaner)
    made: dict[tuple[str, tuple[str, str]], Difference] = {}
    for pair, cleaners in pairs.items():
        both = [(values[cleaner][pair[0]], values[cleaner][pair[1]]) for cleaner in cleaners]
        compared = _compare([(finite(first), finite(second)) for first, second in both])
        means = [(mean_of(metric, tuple(first)), mean_of(metric, tuple(second))) for first, second in both]
        failed = [metric == BEST and any(mean.known < mean.of for mean in two) for two in means]
        whole = [(_whole(first), _whole(second)) if finite([*first, *second]) else ([], []) for first, second in both]
        counted = _compare(whole) if any(failed) else [None] * len(both)
        for at, cleaner in enumerate(cleaners):
            every = counted[at] if failed[at] else None
            lost = at_chance_in(groups[cleaner][pair[0]], metric), at_chance_in(groups[cleaner][pair[1]], metric)
            made[cleaner, pair] = Difference(cleaner, pair, means[at], compared[at], every, lost)
    return [made[cleaner, pair] for cleaner, both_ways in paired.items() for pair in both_ways]


def _whole(values: Iterable[float | None]) -> list[float]:
    return [number for value in values for number in (finite([value]) or [0.0])]


def _compare(groups: Sequence[tuple[list[float], list[float]]]) -> list[Comparison | None]:
    """A comparison for each cleaner's two groups, None where one is empty. p is adjusted over the cleaners that reach the
    number on a side: where only one does, nothing can be tested, but whether that is so was not known before (p = 1)."""
    known = [at for at, (first, second) in enumerate(groups) if first and second]
    tests = [permutation(*groups[at]) for at in known]
    family = sum(bool(first or second) for first, second in groups)
    ps = [test.p for test in tests] + [1.0] * (family - len(tests))
    out: list[Comparison | None] = [None] * len(groups)
    for place, (at, test, adjusted) in enumerate(zip(known, tests, holm(ps)[: len(tests)], strict=True)):
        first, second = groups[at]
        sizes = (len(first), len(second))
        least = holm([*ps[:place], test.smallest, *ps[place + 1 :]])[place]
        shown = detectable(_spread(first, second), sizes, LEVEL / family, POWER) if sum(sizes) > 2 else None
        value, interval = fmean(first) - fmean(second), inversion(first, second, 1 - LEVEL)
        out[at] = Comparison(sizes, value, interval, test, adjusted, least, family, shown or None)
    return out


def _spread(first: Sequence[float], second: Sequence[float]) -> float:
    """The standard deviation of both groups about their own means."""
    squares = sum((len(group) - 1) * variance(group) for group in (first, second) if len(group) > 1)
    return float((squares / (len(first) + len(second) - 2)) ** 0.5)
