"""The controls of a study's cleaners: the same training from fresh weights (scratch), and the same cleaning of the twin.

A cleaner whose accuracy at ASR <= 5 % is, by its interval, no better than that of scratch has thrown the model away: the
clean data alone give as much. Over seeds the interval is the bootstrap's of each seed's difference; of one seed Wilson's of
both rates, which must lie apart. What a cleaner costs the twin is the accuracy that the twin loses by the run and epoch that
are the poisoned model's best at ASR <= 5 %.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from measures.frontier import CAP, FrontierPoint, best_accuracy
from measures.interval import Interval, bootstrap
from report.points import Panel, PointInfo, by_seed
from report.scores import LOSS, PERCENTAGE_POINTS, Group, Mean, Metric, counted, finite, mean_of

COST = Metric("twin_cost", "change of the twin's top-1 in points by the same cleaning", LOSS)
ABOVE = Metric("above_scratch", f"best top-1 at ASR ≤ {100 * CAP:g} % above scratch, in points", PERCENTAGE_POINTS)
BESIDE = Metric("cost_beside_twin", "the same of its poisoned model, same seeds", LOSS)
HEADS = (ABOVE.label, COST.label, BESIDE.label)
Points = Sequence[FrontierPoint[PointInfo]]


class Control(NamedTuple):
    """Of one way of pre-training and one cleaner: by how much it is above scratch, over the seeds in which both reach ASR <=
    5 %, with its interval; whether it has thrown the model away (None: not known); what it costs the twin, of the seeds
    whose twin was cleaned too, and in `beside` the poisoned models of the same seeds. What the study has no runs for is
    None."""

    group: Group
    above: Mean | None
    interval: Interval | None
    thrown: bool | None
    cost: Mean | None
    beside: Mean | None = None

    @property
    def sentence(self) -> str | None:
        """What must be said of the cleaner: that it threw the model away, if it did."""
        if not self.thrown or self.above is None:
            return None
        way, cleaner = self.group
        return f"{cleaner} threw the {way} model away: {short_of(self.above, self.interval)}."


def short_of(above: Mean, interval: Interval | None) -> str:
    """Why a cleaning is no better than scratch, in words."""
    seeds = f" over {above.known} seeds" if above.known > 1 else ""
    return (
        f"at ASR ≤ {100 * CAP:g} % its top-1 is no better than that of the same clean data with fresh weights (scratch), "
        f"{100 * (above.value or 0):+.1f} points{ends_of(interval)}{seeds}"
    )


def controls(panels: Sequence[Panel]) -> list[Control]:
    """A control for each way and cleaner that has one."""
    out = []
    for panel in panels:
        for cleaner in dict.fromkeys(point.label.objective for point in panel.points):
            mine = [point for point in panel.points if point.label.objective == cleaner]
            above, interval = beside_scratch(mine, panel.scratch)
            cost, beside = _cost(mine, panel.cleaned_twins)
            if above is not None or cost is not None:
                thrown = None if interval is None else interval.low <= 0
                out.append(Control((panel.title, cleaner), above, interval, thrown, cost, beside))
    return out


def beside_scratch(points: Points, scratch: Points) -> tuple[Mean | None, Interval | None]:
    """(the best top-1 at ASR <= 5 % less that of scratch, over the seeds that both have; the interval of it). None where
    scratch was not trained; no interval where no seed has both or pictures were not counted."""
    if not scratch:
        return None, None
    apart: list[float | None] = []
    pairs: list[tuple[FrontierPoint[PointInfo], FrontierPoint[PointInfo]]] = []
    of_scratch = by_seed(scratch)
    for seed, members in by_seed(points).items():
        best, other = best_accuracy(members, CAP), best_accuracy(of_scratch.get(seed, []), CAP)
        apart.append(best.top1 - other.top1 if best and other else None)
        pairs += [(best, other)] if best and other else []
    known = finite(apart)
    interval = bootstrap([known]) if len(known) > 1 else _of_one(*pairs[0]) if len(known) == 1 else None
    return mean_of(ABOVE, tuple(apart)), interval


def _of_one(best: FrontierPoint[PointInfo], other: FrontierPoint[PointInfo]) -> Interval | None:
    """The farthest that Wilson's intervals of both rates allow their difference to lie."""
    ours, theirs = (counted(point.top1, point.label.counts.pictures) for point in (best, other))
    return Interval(ours.low - theirs.high, ours.high - theirs.low) if ours and theirs else None


def _cost(points: Points, twins: Points) -> tuple[Mean | None, Mean | None]:
    """(The top-1 that twins lose by what is best on their poisoned model, what that loses itself), over all seeds, known of
    those whose twin was cleaned; None if none was."""
    if not twins:
        return None, None
    cleaned = {_setting(point): point for point in twins}
    lost: list[tuple[float | None, float | None]] = []
    for members in by_seed(points).values():
        best = best_accuracy(members, CAP)
        twin = cleaned.get(_setting(best)) if best else None
        known = twin is not None and twin.label.start is not None
        lost.append((_lost(twin), _lost(best)) if known else (None, None))
    if not any(ours is not None for ours, _ in lost):
        return None, None
    of_twins, of_poisoned = zip(*lost, strict=True)
    return mean_of(COST, of_twins), mean_of(BESIDE, of_poisoned)


def _lost(point: FrontierPoint[PointInfo] | None) -> float | None:
    return point.label.start.top1 - point.top1 if point and point.label.start else None


def _setting(point: FrontierPoint[PointInfo]) -> str:
    """All by which a cleaning of the twin is that of its poisoned model, and the epoch."""
    info = point.label
    return repr((info.objective, info.seed, info.rate, info.swept, info.epoch))


def control_rows(found: Iterable[Control]) -> list[tuple[Group, list[tuple[str, str]]]]:
    """For a table under HEADS: a cell for each head, and of how many seeds it is."""
    return [(one.group, [_above(one), _cell(one.cost), _cell(one.beside)]) for one in found]


def _above(control: Control) -> tuple[str, str]:
    if control.above is None or control.above.value is None:
        return _cell(control.above)
    words = f"{100 * control.above.value:+.1f}{ends_of(control.interval)}" + ": no better" * bool(control.thrown)
    return words, _cell(control.above)[1]


def _cell(mean: Mean | None) -> tuple[str, str]:
    if mean is None:
        return "not run", ""
    return mean.text, f"{mean.known} of {mean.of} seeds" if mean.known < mean.of else ""


def ends_of(interval: Interval | None) -> str:
    """The interval of a difference in points, with a space before it."""
    return f" [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]" if interval else ""
