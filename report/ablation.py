"""What cleaning reaches along a setting, by epochs and by cleaner: the numbers of the figures that compare."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from measures.frontier import CAP, FLOOR, FrontierPoint, best_accuracy, lowest_asr, pareto
from report.points import Origin, Panel, PointInfo

EPOCHS = 60  # places on an axis of epochs; more are not told apart
RATE = "clean.optimizer.rate"  # which has a figure of its own: the frontier's colours


class Reached(NamedTuple):
    """Of one seed: the best top-1 at ASR <= 5 %, and the lowest ASR at 95 % of its start's top-1; None where no point
    qualifies, and nan where the start was not measured."""

    best: float | None
    low: float | None


Points = list[FrontierPoint[PointInfo]]
Place = float | str  # on the axis: a number, or a name
Ablation = dict[str, dict[Place, list[Reached]]]  # by way of pre-training and place, one for each seed


def by_setting(panels: Sequence[Panel], setting: str) -> Ablation:
    """Along a swept setting of the cleaning; a point without it has no place."""
    return by_place(panels, lambda info: [info.swept[setting]] if setting in info.swept else [])


def by_cleaner(panels: Sequence[Panel]) -> Ablation:
    """By what the cleaning is called, the control that keeps nothing of the start among them."""
    beside = [panel._replace(points=[*panel.points, *panel.scratch]) for panel in panels]
    out = by_place(beside, lambda info: [info.objective])
    for panel in panels:
        for info in panel.diverged:
            of_cleaner = out.setdefault(panel.title, {}).setdefault(info.objective, [])
            of_cleaner.append(Reached(None, None if info.start else float("nan")))
    return out


def by_epoch(panels: Sequence[Panel]) -> Ablation:
    """Within so many epochs of cleaning: what is reached stays reached. Epochs are those at which something was measured, or
    EPOCHS of them. A seed carries only its Pareto front from epoch to epoch, of which both numbers are."""
    every = sorted({point.label.epoch for panel in panels for point in panel.points})
    epochs = [every[-1 - at * len(every) // EPOCHS] for at in reversed(range(EPOCHS))] if len(every) > EPOCHS else every
    out: Ablation = {}
    for panel in panels:
        seeds: dict[int | None, list[Points]] = {}
        for point in panel.points:
            parts = seeds.setdefault(point.label.seed, [[] for _ in epochs])
            parts[bisect_left(epochs, point.label.epoch)].append(point)
        line: dict[Place, list[Reached]] = {epoch: [] for epoch in epochs}
        for parts in seeds.values():
            front, starts = Points(), set[FrontierPoint[Origin]]()
            for epoch, part in zip(epochs, parts, strict=True):
                front, starts = pareto([*front, *part]), starts | _starts(part)
                if front or part:
                    line[epoch].append(_reached(front, starts))
        if seeds:
            out[panel.title] = {epoch: reached for epoch, reached in line.items() if reached}
    return out


def settings(panels: Sequence[Panel]) -> list[str]:
    """The swept settings of the cleaning that are numbers and take two values or more, but for its learning rate."""
    values: dict[str, set[float]] = {}
    for panel in panels:
        for point in panel.points:
            for name, value in point.label.swept.items():
                if name != RATE and isinstance(value, int | float) and not isinstance(value, bool):
                    values.setdefault(name, set()).add(float(value))
    return [name for name, numbers in values.items() if len(numbers) > 1]


def by_place(panels: Sequence[Panel], places: Callable[[PointInfo], Iterable[Place]]) -> Ablation:
    """By the places that each point has on an axis, over everything else."""
    out: Ablation = {}
    for panel in panels:
        groups: dict[Place, dict[int | None, Points]] = {}
        for point in panel.points:
            for place in places(point.label):
                groups.setdefault(place, {}).setdefault(point.label.seed, []).append(point)
        if groups:
            ordered = sorted(groups, key=lambda place: (isinstance(place, str), place if not isinstance(place, str) else 0))
            out[panel.title] = {
                place: [_reached(points, _starts(points)) for points in groups[place].values()] for place in ordered
            }
    return out


def _starts(points: Points) -> set[FrontierPoint[Origin]]:
    return {point.label.start for point in points if point.label.start is not None}


def _reached(points: Points, starts: set[FrontierPoint[Origin]]) -> Reached:
    best = best_accuracy(points, CAP)
    low = lowest_asr(points, FLOOR * fmean(start.top1 for start in starts)) if starts else None
    return Reached(best.top1 if best else None, (low.asr if low else None) if starts else float("nan"))
