"""The numbers behind a verdict: of each way of pre-training and cleaner, for each seed and over seeds.

That no point qualifies is a result: its value is None, it is counted, and it is never left out of sight of a mean.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isfinite
from statistics import fmean
from typing import Literal, NamedTuple

from measures.frontier import CAP, CAPS, FLOOR, FrontierPoint, best_accuracy, hypervolume, lowest_asr
from measures.interval import Interval, bootstrap, wilson
from measures.selection import Candidate, by_accuracy, by_distance, by_proxy, by_val_loss
from report.points import Origin, Panel, PointInfo

SHARES = (0.90, 0.95, 1.00)  # of the start's accuracy
RULES: dict[str, tuple[str, Callable[..., Candidate[FrontierPoint[PointInfo]] | None]]] = {  # by name: the number it needs
    "accuracy": ("top1", by_accuracy),
    "val_loss": ("val_loss", by_val_loss),
    "distance": ("distance", by_distance),
    "proxy": ("proxy_asr", by_proxy),
}
MOST = 10**12  # pictures; a journal that claims more is not believed
Group = tuple[str, str]  # the way of pre-training, the cleaner
FRESH: Literal["fresh"] = "fresh"


class Unit(NamedTuple):
    """How a number is written: times `scale`, with so many digits (None: one, or none if it is whole), before `sign`. What
    is `lost` is written as a change: a loss of 2.0 is -2.0."""

    scale: float
    digits: int | None
    sign: str = ""
    lost: bool = False


PERCENT, PERCENTAGE_POINTS, COUNT, AREA = Unit(100, 1, " %"), Unit(100, 1), Unit(1, None), Unit(1, 4)
LOSS, RELATIVE_LOSS = Unit(100, 1, "", lost=True), Unit(100, 1, " %", lost=True)


class Metric(NamedTuple):
    """What a number is: its name in files, its label for people, its unit, and the cap on ASR that it is under, if any."""

    name: str
    label: str
    unit: Unit
    cap: float | None = None


def best_top1(cap: float) -> Metric:
    """The best accuracy under a cap on ASR."""
    return Metric(f"best_top1_at_asr_{cap:g}", f"best top-1 at ASR ≤ {100 * cap:g} %", PERCENT, cap)


def drop(cap: float) -> Metric:
    """What that accuracy has lost from the start's."""
    return Metric(f"drop_at_asr_{cap:g}", f"change of top-1 in points at ASR ≤ {100 * cap:g} %", LOSS, cap)


def relative_drop(cap: float) -> Metric:
    """The same as a share of the start's."""
    return Metric(f"relative_drop_at_asr_{cap:g}", f"relative change of top-1 at ASR ≤ {100 * cap:g} %", RELATIVE_LOSS, cap)


def lowest_asr_at(share: float) -> Metric:
    """The lowest ASR at a share of the start's accuracy."""
    return Metric(f"lowest_asr_at_{share:g}_of_start", f"lowest ASR at top-1 ≥ {100 * share:g} % of start", PERCENT)


HYPERVOLUME, POINTS = Metric("hypervolume", "hypervolume", AREA), Metric("points", "points", COUNT)
CARRYING = Metric("carrying_points", f"points at ASR ≤ {100 * CAP:g} % and top-1 ≥ {100 * FLOOR:g} % of start", COUNT, CAP)


class Choice(NamedTuple):
    """What a rule that sees no ASR chose: its rates, the oracle's lead in accuracy, and how far its ASR is above the cap."""

    top1: Metric
    asr: Metric
    gap: Metric
    excess: Metric


def chosen_by(rule: str) -> Choice:
    """The numbers of a rule's choice."""
    name, label = f"chosen_by_{rule}", f"chosen by {rule}"
    return Choice(
        Metric(f"{name}_top1", f"{label}: top-1", PERCENT),
        Metric(f"{name}_asr", f"{label}: ASR", PERCENT),
        Metric(f"{name}_gap", f"{label}: top-1 below the oracle's", PERCENTAGE_POINTS),
        Metric(f"{name}_excess", f"{label}: ASR above {100 * CAP:g} %", PERCENTAGE_POINTS, CAP),
    )


BEST, LOWEST = best_top1(CAP), lowest_asr_at(FLOOR)


HEADLINES = (BEST, drop(CAP), LOWEST, HYPERVOLUME, CARRYING)  # of many numbers those that are told first


class Number(NamedTuple):
    """One number of one seed; None where no point qualifies. `interval` is Wilson's if the pictures were counted."""

    metric: Metric
    value: float | None
    interval: Interval | None = None
    at: FrontierPoint[PointInfo] | None = None


class Score(NamedTuple):
    """All numbers of one (way, cleaner, seed), by their metrics' names."""

    group: Group
    seed: int | None
    start: FrontierPoint[Origin] | None
    numbers: dict[str, Number]
    control: Literal["fresh"] | None = None  # what keeps nothing of the start: beside the cleaners, and none of them
    attack: int = 1  # which of those that its model carries


class Mean(NamedTuple):
    """One number over the seeds: `known` of `of` seeds have it; a bootstrap interval if at least two have."""

    metric: Metric
    known: int
    of: int
    value: float | None
    interval: Interval | None

    @property
    def text(self) -> str:
        """The mean with its interval; "none" where no seed has it."""
        if self.value is None:
            return "none"
        scale, digits, sign, lost = self.metric.unit
        if digits is None:
            digits = 0 if self.value == int(self.value) else 1
        values = [self.value, *(self.interval or ())]
        if lost:
            values = [-self.value, *(-end for end in reversed(self.interval or ()))]
        first, *ends = (f"{scale * value:{'+' if lost else ''}.{digits}f}" for value in values)
        return first + sign + (f" [{', '.join(ends)}]" if ends else "")


def scores(panels: Sequence[Panel]) -> list[Score]:
    """One for each (way, cleaner, seed) that has points or whose cleanings all diverged, in their order; of each way the
    control that keeps nothing of the start comes last, and no rule chooses of it."""
    out: list[Score] = []
    for panel in panels:
        points: dict[tuple[str, int | None, Literal["fresh"] | None], list[FrontierPoint[PointInfo]]] = {}
        for control, members in ((None, panel.points), (FRESH, panel.scratch)):
            for point in members:
                points.setdefault((point.label.objective, point.label.seed, control), []).append(point)
        of_cleaners = [_score(panel, *of, members) for of, members in points.items() if of[2] is None]
        out += of_cleaners + [_of_diverged(panel, info, of_cleaners) for info in panel.diverged]
        out += [_score(panel, *of, members) for of, members in points.items() if of[2] is not None]
    return out


def _of_diverged(panel: Panel, info: PointInfo, others: Sequence[Score]) -> Score:
    """A seed without a model: it has none of the numbers that the cleaner's other seeds have, and no point."""
    metrics = {BEST.name: BEST} | {
        name: number.metric for other in others if other.group[1] == info.objective for name, number in other.numbers.items()
    }
    counts = {metric.name: Number(metric, 0) for metric in (POINTS, CARRYING) if metric.name in metrics or metric == POINTS}
    named = {name: Number(metric, None) for name, metric in metrics.items()} | counts
    return Score((panel.title, info.objective), info.seed, info.start, named, None, panel.attack)


def _score(
    panel: Panel,
    cleaner: str,
    seed: int | None,
    control: Literal["fresh"] | None,
    points: list[FrontierPoint[PointInfo]],
) -> Score:
    starts = list(dict.fromkeys(point.label.start for point in points if point.label.start is not None))
    start = FrontierPoint(fmean(p.asr for p in starts), fmean(p.top1 for p in starts), starts[0].label) if starts else None
    numbers: list[Number] = []
    for cap in CAPS:
        best = best_accuracy(points, cap)
        numbers.append(_top1(best_top1(cap), best))
        if start and start.top1:
            lost = None if best is None else start.top1 - best.top1
            numbers.append(Number(drop(cap), lost, None, best))
            numbers.append(Number(relative_drop(cap), None if lost is None else lost / start.top1, None, best))
    if start:
        numbers += [_asr(lowest_asr_at(share), lowest_asr(points, share * start.top1)) for share in SHARES]
    inside = [point for point in points if 0 <= point.asr <= 1 and 0 <= point.top1 <= 1]
    numbers.append(Number(HYPERVOLUME, hypervolume(inside)))
    if start:
        carrying = [p for p in points if p.asr <= CAP and p.top1 >= FLOOR * start.top1]
        numbers.append(Number(CARRYING, len(carrying)))
    numbers += [Number(POINTS, len(points)), *([] if control else _chosen(points, start))]
    named = {number.metric.name: number for number in numbers}
    return Score((panel.title, cleaner), seed, start, named, control, panel.attack)


def _top1(metric: Metric, point: FrontierPoint[PointInfo] | None) -> Number:
    """The point's accuracy, with Wilson's interval if its journal says of how many pictures it is."""
    if point is None:
        return Number(metric, None)
    return Number(metric, float(point.top1), counted(point.top1, point.label.facts.get("pictures")), point)


def _asr(metric: Metric, point: FrontierPoint[PointInfo] | None) -> Number:
    """The point's ASR, likewise."""
    if point is None:
        return Number(metric, None)
    return Number(metric, float(point.asr), counted(point.asr, point.label.facts.get("others")), point)


def counted(rate: float, of: float | None) -> Interval | None:
    """Wilson's interval of a rate of so many pictures; None if their number is not known or either can't be."""
    whole = round(of or 0)
    return wilson(round(rate * whole), whole) if 0 < whole < MOST and 0 <= rate <= 1 else None


def _chosen(points: list[FrontierPoint[PointInfo]], start: FrontierPoint[Origin] | None) -> list[Number]:
    """What each rule that sees no ASR would have chosen, and how far that is from the oracle that sees it."""
    candidates = [
        Candidate(p.top1, p.label.facts.get("val_loss"), p.label.facts.get("distance"), p.label.facts.get("proxy_asr"), p)
        for p in points
    ]
    oracle, numbers = best_accuracy(points, CAP), list[Number]()
    for name, (needed, rule) in RULES.items():
        known = sum(getattr(candidate, needed) is not None for candidate in candidates)
        if known < len(candidates) or (name == "distance" and start is None):
            continue  # a rule that sees some points alone chooses among others than its neighbours do
        candidate = rule(candidates, start.top1 if start else None)
        point, metrics = candidate.label if candidate else None, chosen_by(name)
        gap = oracle.top1 - point.top1 if oracle and point else None
        excess = max(0.0, point.asr - CAP) if point else None
        numbers += [_top1(metrics.top1, point), _asr(metrics.asr, point)]
        numbers += [Number(metrics.gap, gap, None, point), Number(metrics.excess, excess, None, point)]
    return numbers


def lacking(seeds: Sequence[Score]) -> list[str]:
    """What could not be judged for want of a number in the journals, as notes."""
    remarks, cleaned = [], [score for score in seeds if score.control is None and score.numbers[POINTS.name].value]
    for name, (needed, _) in RULES.items():
        without = list(dict.fromkeys(score.group for score in cleaned if chosen_by(name).top1.name not in score.numbers))
        if without:
            reason = f"its number, {needed}, is not in the journals at each epoch of each cleaning"
            reason += " or no start was measured" * (name == "distance")
            listed = "all cleanings" if len(without) == len({score.group for score in cleaned}) else _listed(without)
            remarks.append(f"The selection rule '{name}' is left out for {listed}: {reason}.")
    unstarted = list(dict.fromkeys(score.group for score in seeds if score.start is None))
    if unstarted:
        remarks.append(
            f"No drops and no accuracy floors for {_listed(unstarted)}: the model before cleaning was not measured."
        )
    return remarks


def _listed(groups: Sequence[Group]) -> str:
    return "; ".join(f"{way} cleaned by {cleaner}" for way, cleaner in groups)


def over_seeds(seeds: Sequence[Score]) -> dict[Group, dict[str, Mean]]:
    """The mean of each number over the seeds of each group, by the metric's name."""
    groups: dict[Group, list[Score]] = {}
    for score in seeds:
        groups.setdefault(score.group, []).append(score)
    means: dict[Group, dict[str, Mean]] = {}
    for group, members in groups.items():
        values: dict[Metric, list[float | None]] = {}
        for score in members:
            for number in score.numbers.values():
                values.setdefault(number.metric, []).append(number.value)
        means[group] = {metric.name: mean_of(metric, tuple(listed)) for metric, listed in values.items()}
    return means


def finite(values: Sequence[float | None]) -> list[float]:
    """Those that are numbers: a journal may hold one that is not finite."""
    return [value for value in values if value is not None and isfinite(value)]


@lru_cache(maxsize=256)  # a verdict and a difference ask for the means of a group again
def mean_of(metric: Metric, values: tuple[float | None, ...]) -> Mean:
    """The mean of those values that are numbers, how many they are, and its bootstrap interval."""
    known = finite(values)
    interval = bootstrap([known]) if len(known) > 1 else None
    return Mean(metric, len(known), len(values), fmean(known) if known else None, interval)
