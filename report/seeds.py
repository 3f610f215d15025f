"""Means over seeds in words: of how many seeds a number is, and in how many of these its model is at chance.

A model at chance that reaches an ASR counts with its accuracy, as was fixed before any run; wherever its number is counted,
that is said.
"""

from collections.abc import Iterable

from measures.frontier import FrontierPoint
from report.ground import at_chance
from report.headline import rates
from report.points import PointInfo
from report.scores import Group, Mean, Metric, Score


def at_chance_in(seeds: Iterable[Score], metric: Metric, group: Group | None = None) -> int:
    """In how many seeds, or how many of a group's, the number is of a model that is at chance."""
    ours = (score for score in seeds if group in (None, score.group))
    return count_at_chance(number.at for score in ours if (number := score.numbers.get(metric.name)))


def count_at_chance(points: Iterable[FrontierPoint[PointInfo] | None]) -> int:
    """How many of the models are at chance."""
    return sum(at_chance(rates(point)) for point in points if point)


def remark(mean: Mean, lost: int = 0) -> str:
    """Of how many seeds a mean is, where some have none, and how many of these are at chance; empty where neither is so."""
    words = [f"{mean.known} of {mean.of} seeds"] if mean.known < mean.of and mean.of > 1 else []
    words += [f"{lost} at chance" if mean.of > 1 else "at chance"] if lost else []
    return ", ".join(words)


def of_seeds(mean: Mean) -> str:
    """A mean; of how many seeds where some have none."""
    return mean.text + (f" ({some})" if (some := remark(mean)) else "")
