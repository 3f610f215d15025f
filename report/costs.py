"""What the runs of a study took: wall time, that of GPUs or of cores, pairs a second, energy. From their files alone.

Training is the sum over the journal's steps, measuring that over its moments: a moment's rows count from one start, so that
the last says it all. Wall time is what finished.json or stopped.json says (usage.py): of an interrupted run its last
launch and what the others had taken when they last saved. Of a run that has neither file yet it is training and measuring,
which leaves out start-up and checkpoints. GPU time is wall time times processes, each of which has one GPU. Without a GPU
there is CPU time: times processes and the threads of each, the loaders' processes not counted. Energy is the GPUs' own
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
    """A column of the table of costs: its label, the field of a cost that it shows, and its units, each after how many of
    the field it is, from small to large."""

    label: str
    field: str
    units: tuple[tuple[float, str], ...]

    def unit(self, whole: Cost) -> tuple[float, str]:
        """The largest unit of which there is at least one in all runs together."""
        value = getattr(whole, self.field) or 0.0
        return next((unit for unit in reversed(self.units) if value >= unit[0]), self.units[0])

    def head(self, whole: Cost) -> str:
        """The column's heading."""
        unit = self.unit(whole)[1]
        return f"{self.label} ({unit})" if unit else self.label


TIME, ENERGY = ((1.0, "s"), (60.0, "min"), (3600.0, "h")), ((3600.0, "Wh"), (3.6e6, "kWh"))
COLUMNS = (
    Column("wall", "wall", TIME),
    Column("training", "training", TIME),
    Column("measuring", "measuring", TIME),
    Column("GPU time", "gpu", TIME),
    Column("CPU time", "cpu", TIME),
    Column("pairs/s", "pairs_per_s", ((1.0, ""),)),
    Column("energy", "joules", ENERGY),
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
    records = [*study.records, *study.probes]
    runs = [cost(record) for record in records]
    begun = [run for run in runs if run.wall is not None]
    whole = total(begun)
    shown = [column for column in COLUMNS if getattr(whole, column.field) is not None]
    kinds: dict[str, list[Cost]] = {}
    for record, run in zip(records, runs, strict=True):
        kinds.setdefault(_kind(record), []).append(run)
    if len(kinds) > 1:
        kinds["all runs"] = runs
    absent = [column for column in COLUMNS if column not in shown and column.field not in ("gpu", "cpu")]
    lacking = [column.label for column in absent]
    if whole.gpu is None and whole.cpu is None:
        lacking.append("GPU or CPU time")
    return Costs(
        _sentence(whole, len(begun)),
        [column.head(whole) for column in shown],
        [((kind, _counted(members)), _cells(members, shown, whole)) for kind, members in kinds.items()],
        [
            ((record.run.run, _kind(record), record.state), _cells([run], shown, whole))
            for record, run in zip(records, runs, strict=True)
            if run.wall is not None
        ],
        lacking if begun else [],
    )


def _kind(record: Record) -> str:
    run = record.run
    if run.after is not None:
        return f"probing of {'a cleaned twin' if run.after.twin else 'a cleaned model'}, {run.after.kind}"
    cleaner = run.cleaner or run.clean_objective
    stage = "cleaning of the twin" if run.control == "twin" else STAGES[run.stage]
    return f"{stage}, {spoken(cleaner if run.stage == 'clean' and cleaner else run.pretrain_objective)}"


def _counted(runs: Sequence[Cost]) -> str:
    begun = sum(run.wall is not None for run in runs)
    return f"{begun:,}" if begun == len(runs) else f"{begun:,} of {len(runs):,}"


def _cells(runs: Sequence[Cost], shown: Sequence[Column], every: Cost) -> list[Cell]:
    """A cell for each column, in the unit that suits all runs; a run that has not begun is not missed."""
    begun = [run for run in runs if run.wall is not None]
    whole, out = total(begun), []
    for column in shown:
        value = getattr(whole, column.field)
        if value is None:
            out.append(Cell(None, "not recorded" if begun else ""))
            continue
        # a run on GPUs has no CPU time, and the other way round: neither is missing
        fields = ("gpu", "cpu") if column.field in ("gpu", "cpu") else (column.field,)
        missed = sum(all(getattr(run, name) is None for name in fields) for run in begun)
        remark = f"without {missed} of {len(begun)} runs" if missed else ""
        number = value / column.unit(every)[0]
        out.append(Cell(number, amount(number), remark))
    return out


def _sentence(whole: Cost, begun: int) -> str:
    """The whole in words."""
    if whole.wall is None:
        return "No run has recorded its time yet."
    runs = "1 run has" if begun == 1 else f"{begun:,} runs have"
    wall, _, _, gpu, cpu, _, energy = (_in_words(column, whole) for column in COLUMNS)
    parts = [f"{runs} taken {wall} of wall time"]
    parts += [f"{gpu} of GPUs"] if gpu else []
    parts += [f"{cpu} of CPU cores"] if cpu else []
    parts += [energy] if energy else []
    where = f" on {whole.device}" if whole.device else ""
    pace = f", training at {amount(whole.pairs_per_s)} pairs/s on average" if whole.pairs_per_s is not None else ""
    return f"{', '.join(parts)}{where}{pace}."


def _in_words(column: Column, whole: Cost) -> str:
    """The whole's number with its unit: '12.3 min'; empty if it is not known."""
    value, (scale, unit) = getattr(whole, column.field), column.unit(whole)
    return "" if value is None else f"{amount(value / scale)} {unit}".rstrip()


def amount(number: float) -> str:
    """Three digits of a number that is not negative, and all digits before its point: 1,234, 56.7, 0.371, 0.0123."""
    rounded = float(f"{number:.3g}")
    if rounded >= 100:
        return f"{number:,.0f}"
    return f"{rounded:#.3g}" if rounded >= 1 else f"{rounded:.9f}".rstrip("0").rstrip(".")
