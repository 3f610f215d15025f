"""How long a study still takes, by the runs that ended and by the pace of those that go on."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engine.study.status import RunStatus

UNENDED = ("to do", "waiting", "running", "lost")  # states of runs that have not ended


class TimeLeft(NamedTuple):
    """Of the runs that have not ended: seconds until those of known length have, and how many are of a stage that none has
    begun, so that nobody knows their length."""

    seconds: float
    unknown: int

    def text(self) -> str | None:
        """In words; None if nothing is known."""
        if not self.seconds:
            return None
        rest = f", then {self.unknown:,} run{'s' * (self.unknown > 1)} of unknown length" if self.unknown else ""
        return f"about {duration(self.seconds)} left{rest}"


def duration(seconds: float) -> str:
    """A duration for people: '40 s', '12 min', '3.5 h'."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_left(runs: Sequence["RunStatus"], jobs: int) -> TimeLeft:
    """Of a study with `jobs` runs at once. A run takes as long as those of the same stage and objective that ended, else as
    one that goes on will at its pace, else as others of its stage."""
    known = [(of, _means(runs, of, seconds)) for of in (_kind, _stage) for seconds in (_taken, _at_its_pace)]
    total, unknown = 0.0, 0
    for run in runs:
        if run.state not in UNENDED:
            continue
        length = next((means[of(run)] for of, means in known if of(run) in means), None)
        if length is None:
            unknown += 1
        else:
            total += length * (1 - run.step / run.steps if run.steps else 1.0)
    return TimeLeft(total / max(1, jobs), unknown)


def _kind(run: "RunStatus") -> Hashable:
    return _stage(run), run.objective


def _stage(run: "RunStatus") -> Hashable:
    return run.stage == "clean"  # a twin is a pre-training too


def _taken(run: "RunStatus") -> float | None:
    return run.seconds


def _at_its_pace(run: "RunStatus") -> float | None:
    if run.state != "running" or not (run.steps and run.batch and run.rate):
        return None
    return run.steps * run.batch / run.rate


def _means(
    runs: Iterable["RunStatus"], of: Callable[["RunStatus"], Hashable], seconds: Callable[["RunStatus"], float | None]
) -> dict[Hashable, float]:
    values: dict[Hashable, list[float]] = defaultdict(list)
    for run in runs:
        if (value := seconds(run)) is not None:
            values[of(run)].append(value)
    return {key: fmean(of_key) for key, of_key in values.items()}
