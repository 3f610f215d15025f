"""What a kind of columns of the open matrix promises: where its values are in a study, and how a cell says them.

A value belongs to a run. Values of one place, of whatever study, are one cell over their seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from report.matrix_runs import Models, Place, Run
from report.points import Panel
from report.scores import Mean, Metric, Unit, mean_of
from report.seeds import of_seeds
from report.submission import Submission

Counted = Mapping[tuple[str, str], Run]  # each run once, by its name and its images


class Value(NamedTuple):
    """A value of a run, and the place that it stands in; `called` is what its study calls the column."""

    place: Place
    run: Run
    called: str
    of: Any = None  # what was found of the run, for the kind
    numbers: Any = None  # what must be the same wherever the run's value is given


@dataclass(frozen=True)
class Group:
    """The values of one place, a run each, and the models that they are of; `beside` are the values of other places in the
    same row and column, `row` all of the kind in the row."""

    values: Sequence[Value]
    models: Models
    beside: Sequence[Sequence[Value]]
    row: Sequence[Value] = ()

    @property
    def runs(self) -> list[Run]:
        """The values' runs."""
        return [value.run for value in self.values]


@dataclass(frozen=True)
class Said:
    """What a cell says. In the table stands `number` under the bold `head`, then the lines of `small`, then marks; the rest
    is a link away. `numbers` are for files, by the kind's columns."""

    attack: int | None  # which of the models' attacks it is of, the first being 0; None: the models themselves
    head: str
    number: str
    sentence: str
    numbers: Mapping[str, Any]
    panel: Panel
    status: str = ""
    small: Sequence[str] = ()
    marks: Sequence[str] = ()
    heads: Sequence[str] = ()  # of a table with one of `lines` for each seed
    lines: Sequence[Sequence[str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    costs: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


class Kind(Protocol):
    """A kind of columns."""

    name: str  # what stands above them
    columns: tuple[str, ...]  # the names of its cells' numbers

    def values(self, given: Submission, counted: Counted) -> Iterator[Value]:
        """All values in a study."""
        ...

    def what(self, column: str) -> str:
        """A place's column in words."""
        ...

    def tried(self, group: Group) -> str:
        """What was asked or tried, in words, with what tells the cell apart from those beside it."""
        ...

    def cells(self, group: Group, what: str) -> Iterator[Said]:
        """One for each attack that the models carry, or one of the models; `what` is the column in words."""
        ...


SHARE_OF_ONE = Unit(1, 3)  # how an AUROC is written


def in_seeds(mean: Mean) -> str:
    """A mean, and of how many seeds it is."""
    return f"{mean.text} in {mean.known} of {mean.of} seed{'s' * (mean.of > 1)}"


def average(values: Sequence[float | None], unit: Unit) -> str:
    """The mean over seeds with its interval, and of how many seeds it is."""
    return in_seeds(mean_of(Metric("", "", unit), tuple(values)))


def brief(values: Sequence[float | None], unit: Unit) -> str:
    """The mean over seeds with its interval; of how many seeds where some have none."""
    mean = mean_of(Metric("", "", unit), tuple(values))
    return of_seeds(mean) if mean.known else mean.text


def numbers_of(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """The mean over seeds under a name, and the ends of its interval."""
    mean = mean_of(Metric(name, name, SHARE_OF_ONE), tuple(values))
    low, high = mean.interval or (None, None)
    return {name: mean.value, f"{name}_low": low, f"{name}_high": high}


def columns_of(*names: str) -> tuple[str, ...]:
    """The names that `numbers_of` gives under each of these."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


def short(value: float | None, unit: Unit) -> str:
    """One number; empty where there is none."""
    return "" if value is None else mean_of(Metric("", "", unit), (value,)).text
