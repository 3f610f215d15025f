"""The numbers behind a verdict: of each way of pre-training and cleaner, for each seed and over seeds.

That no point qualifies is a result: its value is None, it is counted, and it is never left out of sight of a mean.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from measures.frontier import CAP, CAPS, FLOOR, FrontierPoint, best_accuracy, hypervolume, lowest_asr
from measures.interval import Interval, bootstrap, wilson
from measures.selection import Candidate, by_accuracy, by_distance, by_proxy, by_val_loss
from report.values import Mark, Panel

SHARES = (0.90, 0.95, 1.00)  # of the start's accuracy
RULES: dict[str, tuple[str, Callable[..., Candidate[FrontierPoint[Mark]] | None]]] = {  # by name: the number it needs
    "accuracy": ("top1", by_accuracy),
    "val_loss": ("val_loss", by_val_loss),
    "distance": ("distance", by_distance),
    "proxy": ("proxy_asr", by_proxy),
}
MOST = 10**12  # pictures; a journal that claims more is not believed
Group = tuple[str, str]  # the way of pre-training, the cleaner


class Number(NamedTuple):
    """One number of one seed; None where no point qualifies. `interval` is Wilson's if the pictures were counted."""

    value: float | None
    interval: Interval | None = None
    at: FrontierPoint[Mark] | None = None


class Score(NamedTuple):
    """All numbers of one (way, cleaner, seed), by name."""

    group: Group
    seed: int | None
    start: FrontierPoint[str] | None
    numbers: dict[str, Number]


class Mean(NamedTuple):
    """One number over the seeds: `known` of `of` seeds have it; a bootstrap interval if at least two have."""

    known: int
    of: int
    value: float | None
    interval: Interval | None


def scores(panels: Sequence[Panel]) -> list[Score]:
    """One for each (way, cleaner, seed) that has points, in their order."""
    points: dict[tuple[str, str, int | None], list[FrontierPoint[Mark]]] = {}
    for panel in panels:
        for point in panel.points:
            points.setdefault((panel.title, point.label.objective, point.label.seed), []).append(point)
    return [_score((way, cleaner), seed, members) for (way, cleaner, seed), members in points.items()]


def _score(group: Group, seed: int | None, points: list[FrontierPoint[Mark]]) -> Score:
    starts = list(dict.fromkeys(point.label.start for point in points if point.label.start is not None))
    start = FrontierPoint(fmean(p.asr for p in starts), fmean(p.top1 for p in starts), "start") if starts else None
    numbers: dict[str, Number] = {}
    for cap in CAPS:
        best = best_accuracy(points, cap)
        numbers[f"best_top1_at_asr_{cap:g}"] = _number(best, "top1", "pictures")
        if start and start.top1:
            lost = None if best is None else start.top1 - best.top1
            numbers[f"drop_at_asr_{cap:g}"] = Number(lost, None, best)
            numbers[f"relative_drop_at_asr_{cap:g}"] = Number(None if lost is None else lost / start.top1, None, best)
    for share in SHARES if start else ():
        low = lowest_asr(points, share * start.top1) if start else None
        numbers[f"lowest_asr_at_{share:g}_of_start"] = _number(low, "asr", "others")
    inside = [point for point in points if 0 <= point.asr <= 1 and 0 <= point.top1 <= 1]
    numbers["hypervolume"] = Number(hypervolume(inside))
    if start:
        carrying = [p for p in points if p.asr <= CAP and p.top1 >= FLOOR * start.top1]
        numbers["carrying_points"] = Number(len(carrying))
    numbers["points"] = Number(len(points))
    return Score(group, seed, start, numbers | _chosen(points, start))


def _number(point: FrontierPoint[Mark] | None, rate: str, of: str) -> Number:
    """The point's rate, with Wilson's interval if its journal says of how many pictures it is."""
    if point is None:
        return Number(None)
    value = float(getattr(point, rate))
    return Number(value, counted(value, point.label.facts.get(of)), point)


def counted(rate: float, of: float | None) -> Interval | None:
    """Wilson's interval of a rate of so many pictures; None if their number is not known or either can't be."""
    whole = round(of or 0)
    return wilson(round(rate * whole), whole) if 0 < whole < MOST and 0 <= rate <= 1 else None


def _chosen(points: list[FrontierPoint[Mark]], start: FrontierPoint[str] | None) -> dict[str, Number]:
    """What each rule that sees no ASR would have chosen, and how far that is from the oracle that sees it."""
    candidates = [
        Candidate(p.top1, p.label.facts.get("val_loss"), p.label.facts.get("distance"), p.label.facts.get("proxy_asr"), p)
        for p in points
    ]
    oracle, numbers = best_accuracy(points, CAP), dict[str, Number]()
    for name, (needed, rule) in RULES.items():
        if all(getattr(candidate, needed) is None for candidate in candidates) or (name == "distance" and start is None):
            continue
        chosen = rule(candidates, start.top1 if start else None)
        point = chosen.label if chosen else None
        numbers[f"chosen_by_{name}_top1"] = _number(point, "top1", "pictures")
        numbers[f"chosen_by_{name}_asr"] = _number(point, "asr", "others")
        gap = oracle.top1 - point.top1 if oracle and point else None
        numbers[f"chosen_by_{name}_gap"] = Number(gap, None, point)
        numbers[f"chosen_by_{name}_excess"] = Number(max(0.0, point.asr - CAP) if point else None, None, point)
    return numbers


def lacking(found: Sequence[Score]) -> list[str]:
    """What could not be judged for want of a number in the journals, as notes."""
    said = []
    for name, (needed, _) in RULES.items():
        without = list(dict.fromkeys(score.group for score in found if f"chosen_by_{name}_top1" not in score.numbers))
        if without:
            reason = f"its number, {needed}, is not in the journals" + (" or no start was measured" * (name == "distance"))
            listed = "all cleanings" if len(without) == len({s.group for s in found}) else _listed(without)
            said.append(f"The selection rule '{name}' is left out for {listed}: {reason}.")
    unstarted = list(dict.fromkeys(score.group for score in found if score.start is None))
    if unstarted:
        said.append(f"No drops and no accuracy floors for {_listed(unstarted)}: the model before cleaning was not measured.")
    return said


def _listed(groups: Sequence[Group]) -> str:
    return "; ".join(f"{way} cleaned by {cleaner}" for way, cleaner in groups)


def over_seeds(found: Sequence[Score]) -> dict[Group, dict[str, Mean]]:
    """The mean of each number over the seeds of each group."""
    groups: dict[Group, list[Score]] = {}
    for score in found:
        groups.setdefault(score.group, []).append(score)
    return {
        group: {
            name: mean_of([score.numbers[name].value for score in members if name in score.numbers])
            for name in dict.fromkeys(name for score in members for name in score.numbers)
        }
        for group, members in groups.items()
    }


def mean_of(values: Sequence[float | None]) -> Mean:
    """The mean of those values that are not None, how many they are, and its bootstrap interval."""
    known = [value for value in values if value is not None]
    interval = bootstrap(known) if len(known) > 1 else None
    return Mean(len(known), len(values), fmean(known) if known else None, interval)
