"""What the runs of a study took: hours of wall time, of GPUs or of cores, pairs a second, energy. From their files alone.

Training is the sum over the journal's steps, measuring that over its moments: a moment's rows count from one start, so that
the last says it all. Wall time is what finished.json or stopped.json says (usage.py): of an interrupted run its last
launch and what the others had taken when they last saved. Of a run that has neither file yet it is training and measuring,
which leaves out start-up and checkpoints. GPU-hours are wall hours times processes, each of which has one GPU. Without a GPU
there are CPU-hours: times processes and the threads of each, the loaders' processes not counted. Energy is the GPUs' own
count, `joules` of the same files. What no file tells is None, and never guessed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from report.load import Record, Study
from report.points import spoken

STAGES = {"pretrain": "pre-training", "twin": "twin", "clean": "cleaning"}


class Cost(NamedTuple):
    """What a run took, or some runs together, in seconds, pairs, GPU- and CPU-seconds, joules; None is what no file tells.
    `device` is in words."""

    training: float | None = None
    measuring: float | None = None
    wall: float | None = None
    pairs: float | None = None
    gpu: float | None = None
    cpu: float | None = None
    joules: float | None = None
    device: str | None = None

    @property
    def pairs_per_s(self) -> float | None:
        """Pairs a second of training, measuring not counted."""
        return self.pairs / self.training if self.pairs and self.training else None


class Column(NamedTuple):
    """A column of the table of costs: its label, its unit, the field of a cost that it shows, and how many of that the unit
    has."""

    label: str
    unit: str
    field: str
    scale: float

    @property
    def head(self) -> str:
        """The column's heading."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


COLUMNS = (
    Column("wall", "h", "wall", 3600),
    Column("training", "h", "training", 3600),
    Column("measuring", "h", "measuring", 3600),
    Column("GPU-hours", "", "gpu", 3600),
    Column("CPU-hours", "", "cpu", 3600),
    Column("pairs/s", "", "pairs_per_s", 1),
    Column("energy", "kWh", "joules", 3.6e6),
)


class Cell(NamedTuple):
    """A number and how it is written; `remark` says of how many runs it is not known, if of some."""

    value: float | None
    text: str
    remark: str = ""


class Costs(NamedTuple):
    """The section on costs: a sentence, headings, a row for each kind of run and one for all, a row for each run that has
    begun, and what no run tells. A row is its names and then a cell for each of `heads`."""

    sentence: str
    heads: list[str]
    groups: list[tuple[tuple[str, str], list[Cell]]]  # (kind, runs)
    runs: list[tuple[tuple[str, str, str], list[Cell]]]  # (run, kind, state)
    not_recorded: list[str]


def cost(record: Record) -> Cost:
    """What the run took so far."""
    moments: dict[tuple[float, int], float] = {}
    for row in record.measures:
        if row.seconds is not None:
            moments[row.epoch, row.step] = max(moments.get((row.epoch, row.step), 0.0), row.seconds)
    training = record.pace.seconds or None
    measuring = sum(moments.values()) if moments else None
    parts = [seconds for seconds in (training, measuring) if seconds is not None]
    elapsed = record.end.seconds if record.end else None
    wall = max(elapsed or 0.0, sum(parts)) if parts or elapsed is not None else None
    device, gpu, cpu = None, None, None
    if (card := record.card) is not None:
        device = card.device.name
        if wall is not None and card.device.gpu:
            gpu = wall * card.processes
        elif wall is not None:
            cpu = wall * card.processes * card.device.threads
    joules = record.end.joules if record.end else None
    return Cost(training, measuring, wall, record.pace.pairs or None, gpu, cpu, joules, device)


def total(runs: Sequence[Cost]) -> Cost:
    """The costs together; of each number those that are known."""

    def summed(name: str) -> float | None:
        known = [value for run in runs if (value := getattr(run, name)) is not None]
        return sum(known) if known else None

    return Cost(
        training=summed("training"),
        measuring=summed("measuring"),
        wall=summed("wall"),
        pairs=summed("pairs"),
        gpu=summed("gpu"),
        cpu=summed("cpu"),
        joules=summed("joules"),
        device=", ".join(dict.fromkeys(run.device for run in runs if run.device)) or None,
    )


def costs(study: Study) -> Costs:
    """What the study took so far."""
    runs = [cost(record) for record in study.records]
    begun = [run for run in runs if run.wall is not None]
    whole = total(begun)
    shown = [column for column in COLUMNS if getattr(whole, column.field) is not None]
    kinds: dict[str, list[Cost]] = {}
    for record, run in zip(study.records, runs, strict=True):
        kinds.setdefault(_kind(record), []).append(run)
    if len(kinds) > 1:
        kinds["all runs"] = runs
    absent = [column for column in COLUMNS if column not in shown and column.field not in ("gpu", "cpu")]
    lacking = [column.label for column in absent]
    if whole.gpu is None and whole.cpu is None:
        lacking.append("GPU- or CPU-hours")
    return Costs(
        _sentence(whole, len(begun)),
        [column.head for column in shown],
        [((kind, _counted(members)), _cells(members, shown)) for kind, members in kinds.items()],
        [
            ((record.run.run, _kind(record), record.state), _cells([run], shown))
            for record, run in zip(study.records, runs, strict=True)
            if run.wall is not None
        ],
        lacking if begun else [],
    )


def _kind(record: Record) -> str:
    run = record.run
    cleaner = run.cleaner or run.clean_objective
    return f"{STAGES[run.stage]}, {spoken(cleaner if run.stage == 'clean' and cleaner else run.pretrain_objective)}"


def _counted(runs: Sequence[Cost]) -> str:
    begun = sum(run.wall is not None for run in runs)
    return f"{begun:,}" if begun == len(runs) else f"{begun:,} of {len(runs):,}"


def _cells(runs: Sequence[Cost], shown: Sequence[Column]) -> list[Cell]:
    """A cell for each column; a run that has not begun is not missed."""
    begun = [run for run in runs if run.wall is not None]
    whole, out = total(begun), []
    for column in shown:
        value = getattr(whole, column.field)
        if value is None:
            out.append(Cell(None, "not recorded" if begun else ""))
            continue
        # a run on GPUs has no CPU-hours, and the other way round: neither is missing
        fields = ("gpu", "cpu") if column.field in ("gpu", "cpu") else (column.field,)
        missed = sum(all(getattr(run, name) is None for name in fields) for run in begun)
        remark = f"without {missed} of {len(begun)} runs" if missed else ""
        out.append(Cell(value / column.scale, amount(value / column.scale), remark))
    return out


def _sentence(whole: Cost, begun: int) -> str:
    """The whole in words."""
    if whole.wall is None:
        return "No run has recorded its time yet."
    runs = "1 run has" if begun == 1 else f"{begun:,} runs have"
    parts = [f"{runs} taken {amount(whole.wall / 3600)} h of wall time"]
    parts += [f"{amount(whole.gpu / 3600)} GPU-hours"] if whole.gpu is not None else []
    parts += [f"{amount(whole.cpu / 3600)} CPU-hours"] if whole.cpu is not None else []
    parts += [f"{amount(whole.joules / 3.6e6)} kWh"] if whole.joules is not None else []
    where = f" on {whole.device}" if whole.device else ""
    pace = f", training at {amount(whole.pairs_per_s)} pairs/s on average" if whole.pairs_per_s is not None else ""
    return f"{', '.join(parts)}{where}{pace}."


def amount(number: float) -> str:
    """Three digits of a number that is not negative, and all digits before its point: 1,234, 56.7, 0.371, 0.0123."""
    rounded = float(f"{number:.3g}")
    if rounded >= 100:
        return f"{number:,.0f}"
    return f"{rounded:#.3g}" if rounded >= 1 else f"{rounded:.9f}".rstrip("0").rstrip(".")
