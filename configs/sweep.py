"""A sweep: which values a study tries, how it chooses among them, where its runs are carried out.

Keys with a dot, and `seed`, are fields of the spec; any other key that is no setting of the sweep is a named axis, whose
choices set several fields at once and may sweep further ones:

    sweep:
      pretrain.objective: [{kind: mmcl}, {kind: mmcl_ssl}]
      cleaner:
        CleanCLIP: {clean.objective: {kind: cleanclip}}
        PAR: {clean.objective: {kind: par}, sweep: {clean.optimizer.rate: [1.0e-5, 3.0e-5]}}
      search: {kind: random, trials: 20}

Named axes, and fields that are not of the cleaning alone, are always crossed: each of their combinations is an arm. Within
an arm the grid takes every combination of the other values; a search takes `trials` of them, so that each arm is searched
equally hard.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.source import Place
from data.section import Section
from data.seeding import generator
from records.spec_json import of_cleaning

DIGITS = 6  # significant digits of a drawn number, so that a run's settings can be written down


class Range(Section):
    """Numbers between two bounds."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    whole: bool = Field(False, description="whole numbers only")
    points: int | None = Field(
        None, ge=1, le=100_000, description="how many of them a grid takes, evenly spaced, both ends included"
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low <= self.high or self.scale == "log" and self.low <= 0:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; expected low <= high, above 0 on a log scale")
        return self

    def at(self, share: float) -> float | int:
        """The number at a share in [0, 1] of the way from low to high."""
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return self.tidy(value)

    def tidy(self, value: float) -> float | int:
        """The number as a run's setting: rounded, within the bounds."""
        if self.whole:
            return max(math.ceil(self.low), min(math.floor(self.high), round(value)))
        return max(self.low, min(self.high, float(f"{value:.{DIGITS}g}")))

    def values(self) -> list[float | int]:
        """The points of a grid, each once."""
        count = self.points or 0
        return list(dict.fromkeys(self.at(i / max(1, count - 1)) for i in range(count)))


class Choice(BaseModel):
    """One choice of a named axis: path: value for the fields that it sets, and `sweep` for those that it sweeps further."""

    model_config = ConfigDict(frozen=True, extra="allow")
    sweep: dict[str, list[Any] | Range] = {}
    __pydantic_extra__: dict[str, Any] = Field(init=False)

    @property
    def fields(self) -> dict[str, Any]:
        """path: value."""
        return dict(self.__pydantic_extra__)


Axis = list[Any] | Range | dict[str, Choice]


class Grid(Section):
    """Every combination."""

    kind: Literal["grid"] = "grid"


class Random(Section):
    """So many combinations of an arm, drawn at random; the same for the same seed."""

    kind: Literal["random"]
    trials: int = Field(ge=1, description="runs for each combination of the axes that are always crossed")
    seed: int = Field(0, ge=0)


class Optuna(Section):
    """Combinations that Optuna proposes from what the arm's earlier runs reached (tree-structured Parzen estimator;
    Bergstra et al. 2011).

    Proposals are made `together` at a time from the runs before them, so that a study ends with the same runs on any number
    of machines. An attacker's trigger must be known to search by ASR: what it finds is what the strongest defender could.
    """

    kind: Literal["optuna"]
    trials: int = Field(ge=1, description="runs for each combination of the axes that are always crossed")
    seed: int = Field(0, ge=0)
    together: int = Field(4, ge=1, description="runs that are proposed at once; the first ones are drawn at random")
    goal: Literal["capped", "both"] = Field(
        "capped", description="capped: best accuracy at ASR <= cap; both: accuracy up and ASR down, at the run's end"
    )
    cap: float = Field(0.05, ge=0, le=1)


AnySearch = Annotated[Grid | Random | Optuna, Field(discriminator="kind")]


class Median(Section):
    """Stops a cleaning run whose best so far is below the median of the others' at the same epoch (Golovin et al. 2017).

    Others: runs from the same start. What is compared is the accuracy at ASR <= cap, or, below all of these, how far the
    lowest ASR is from the cap. Which runs are stopped depends on the order in which they are carried out.
    """

    kind: Literal["median"]
    after: int = Field(3, ge=1, description="epochs before a run may be stopped")
    runs: int = Field(4, ge=1, description="other runs that must have come as far")
    cap: float = Field(0.05, ge=0, le=1)


class Slurm(Section):
    """What each job of the array asks for."""

    partition: str | None = None
    account: str | None = None
    hours: float = Field(
        24.0, gt=0, le=1e5, description="time limit of a job; it saves before and is put back into the queue"
    )
    cpus: int = Field(8, ge=1, le=4096, description="cores of each process")
    memory_gb: int | None = Field(None, ge=1)
    gpus: bool = Field(True, description="one GPU for each process; false: none, as on nodes without GPUs")
    setup: tuple[str, ...] = Field((), description="shell lines that each job runs first, such as module load cuda")


def _axis_schema() -> dict[str, Any]:
    """What an editor should know of the keys that are no settings."""
    axes = [{"type": "array", "minItems": 1}, Range.model_json_schema()]
    further = {"type": "object", "additionalProperties": {"anyOf": axes}, "description": "fields that the choice sweeps"}
    choice = {"type": "object", "description": "path: value", "properties": {"sweep": further}}
    about = "path: values, or a range; or, under a name of your own, choices that set several fields at once"
    return {"additionalProperties": {"description": about, "anyOf": [*axes, {"additionalProperties": choice}]}}


class Sweep(BaseModel):
    """The axes of a study, how it searches them, and who carries out its runs."""

    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, json_schema_extra=lambda schema: schema.update(_axis_schema())
    )
    search: AnySearch = Grid()
    stop: Median | None = Field(None, description="stop cleaning runs early that fall behind; default: all go to their end")
    limit: int = Field(10_000, ge=1, le=100_000, description="most combinations that it may expand to")
    executor: Literal["here", "local", "slurm"] = Field(
        "here",
        description="here: one run after another in the processes that were started; local: several at once on this "
        "machine; slurm: a job array",
    )
    jobs: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        "auto", description="runs at once; auto: one a GPU, or as many as CPU and memory carry; of Slurm as many as are left"
    )
    processes: int = Field(1, ge=1, le=65_536, description="processes (GPUs) of each run, started by DeepSpeed's launcher")
    slurm: Slurm = Slurm()
    __pydantic_extra__: dict[str, Axis] = Field(init=False)

    @property
    def axes(self) -> dict[str, Axis]:
        """By path or by name."""
        return dict(self.__pydantic_extra__)


def axis_place(values: Mapping[Any, Any], place: Place) -> Place:
    """Where the names of a dotted path lead in a spec: in its sweep a field's path is one key, dots and all, as an axis and
    in a choice under an axis of the user's own."""
    if place[0] != "sweep" or len(place) < 3 or place[1] in Sweep.model_fields:
        return place
    sweep = values.get("sweep")
    own = isinstance(sweep, dict) and isinstance(sweep.get(place[1]), dict)
    start = 1 if not own else 4 if place[3:4] == ("sweep",) else 3
    return (*place[:start], ".".join(map(str, place[start:]))) if place[start:] else place


def is_path(name: str) -> bool:
    """Whether an axis is a field of the spec, not a name of its own."""
    return "." in name or name == "seed"


def of_leaving(path: str) -> bool:
    """Whether a field says what the pre-training leaves out."""
    return path == "data.pretrain.without" or path.startswith("data.pretrain.without.")


def unswept(section: str) -> str:
    """Why no axis sets a section, and what to do instead; '' of one that axes do set."""
    return {
        "detect": "scores change no training; list all detectors in detect.detectors, which score pairs that are encoded "
        "once and are judged at several shares each, and sweep data.pretrain.without for what is left out",
        "after": "its lists, such as after.retune, say what is tried on each chosen model; give another study other ones",
        "machine": "it changes no result; set it with --set",
        "name": "it is the study's folder; set it with --set",
        "sweep": "the choices of an axis under a name of your own may each have a `sweep`",
    }.get(section, "")


# fields that change no training, and so no fingerprint: what is measured, which controls there are, how data is reached
UNTRAINED = (
    *("question", "measure", "data.test", "data.labels", "pretrain.measure_steps"),
    *("attack.twin", "attack.clean_twin", "attack.proxy"),
    *("data.made_by", "data.schemes", "data.patience", "data.pretrain.expect"),
)


def idle(axis: Axis, name: str) -> str:
    """The field that an axis sets, if it sets none that changes a training, so that all its values would be one run; else
    ''."""
    paths = [name] if not isinstance(axis, dict) else [path for one in axis.values() for path in (*one.fields, *one.sweep)]
    changed = [path for path in paths if not any(f"{path}.".startswith(f"{one}.") for one in UNTRAINED)]
    return "" if changed or not paths else paths[0]


@dataclass(frozen=True)
class Arm:
    """One combination of what is always crossed: what it says of itself, what it sets, and what is left to choose."""

    labels: dict[str, Any] = field(default_factory=dict)  # axis: value or choice
    fields: dict[str, Any] = field(default_factory=dict)  # path: value
    axes: dict[str, list[Any] | Range] = field(default_factory=dict)
    cleaning: frozenset[str] = frozenset()  # the axes, of these labels and those left, that concern the cleaning alone
    leaving: frozenset[str] = frozenset()  # those that concern alone what the pre-training leaves out

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of what is left, as path: value."""
        values = [axis.values() if isinstance(axis, Range) else axis for axis in self.axes.values()]
        return (dict(zip(self.axes, point, strict=True)) for point in product(*values))

    def drawn(self, seed: int, trial: int) -> dict[str, Any]:
        """A combination of what is left, drawn from (seed, the arm, trial) alone."""
        draw = generator("search", seed, repr(self.labels), trial)
        return {path: _at(axis, draw) for path, axis in self.axes.items()}


def _at(axis: list[Any] | Range, draw: np.random.Generator) -> Any:
    return axis.at(float(draw.random())) if isinstance(axis, Range) else axis[int(draw.integers(len(axis)))]


def arms(sweep: Sweep) -> Iterator[Arm]:
    """Every arm, the first axis varying slowest."""
    crossed = {name: axis for name, axis in sweep.axes.items() if not is_path(name) or not of_cleaning(name)}
    chosen_later = {name: axis for name, axis in sweep.axes.items() if name not in crossed and not isinstance(axis, dict)}
    options = [[(name, *option) for option in _options(axis)] for name, axis in crossed.items()]
    for combination in product(*options):
        labels: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        axes = dict(chosen_later)
        cleaning, leaving = set(chosen_later), set[str]()
        for name, label, value, further in combination:
            labels[name] = label
            option_fields = value if isinstance(crossed[name], dict) else {name: value}
            fields |= option_fields
            axes |= further
            if all(of_cleaning(path) for path in (*option_fields, *further)):
                cleaning.add(name)
            if all(of_leaving(path) for path in (*option_fields, *further)):
                leaving.add(name)
            cleaning |= {path for path in further if of_cleaning(path)}
            leaving |= {path for path in further if of_leaving(path)}
        yield Arm(labels, fields, axes, frozenset(cleaning), frozenset(leaving))


def _options(axis: Axis) -> list[tuple[Any, Any, dict[str, list[Any] | Range]]]:
    """(label, value or fields, axes that it adds) of each value of an axis."""
    if isinstance(axis, dict):
        return [(name, choice.fields, choice.sweep) for name, choice in axis.items()]
    return [(value, value, {}) for value in (axis.values() if isinstance(axis, Range) else axis)]


def size(sweep: Sweep) -> int:
    """How many points it expands to, without expanding it."""
    total, search = 1, sweep.search
    for name, axis in sweep.axes.items():
        if isinstance(axis, dict):
            inner = [_product(choice.sweep) if isinstance(search, Grid) else 1 for choice in axis.values()]
            total *= sum(inner)
        elif isinstance(search, Grid) or not of_cleaning(name):
            total *= _length(axis)
    return total if isinstance(search, Grid) else total * search.trials


def _product(axes: dict[str, list[Any] | Range]) -> int:
    return math.prod(_length(axis) for axis in axes.values())


def _length(axis: list[Any] | Range) -> int:
    return len(axis.values()) if isinstance(axis, Range) else len(axis)
