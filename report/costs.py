"""What the runs of a study took: time, that of GPUs or of cores, pairs a second, energy. From their files alone.

The time of several runs is each one's time from its beginning to its end, added up: runs that ran side by side each count.
Training is the sum over the journal's steps, measuring that over its evaluations: the rows of one count from one start, so
that the last says it all. A run's time is what finished.json or stopped.json says (usage.py): of an interrupted run its last
launch and what the others had taken when they last saved. Of a run that has neither file yet it is training and measuring,
which leaves out start-up and checkpoints. GPU time is a run's time times its processes, each of which has one GPU. Without a
GPU there is core time: times processes and the threads of each, whether they were busy or not, the loaders' processes not
counted. Energy is the GPUs' own count, `joules` of the same files. What no file tells is None, and never guessed.

A run that another study did and this one took over (finished.json, `taken_over`) took its time there. Here it took what it
took since: measuring, if it was measured again, on whatever machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

from records.ending import FinishedJson, TakenOver
from records.rows import MeasureRow
from report.load import Record, Study
from report.points import spoken

STAGES = {"pretrain": "pre-training", "twin": "twin", "clean": "cleaning"}


class Cost(NamedTuple):
    """What a run took, or some runs together, in seconds, pairs, GPU- and core-seconds, joules; None is what no file tells.
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


IN_FULL = {"s": "seconds", "min": "minutes", "h": "hours"}
TIME, ENERGY = ((1.0, "s"), (60.0, "min"), (3600.0, "h")), ((3600.0, "Wh"), (3.6e6, "kWh"))
COLUMNS = (
    Column("time", "wall", TIME),
    Column("training", "training", TIME),
    Column("measuring", "measuring", TIME),
    Column("GPU time", "gpu", TIME),
    Column("core time", "cpu", TIME),
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
    begun or was taken over, and what no run tells. A row is its names and then a cell for each of `heads`."""

    sentence: str
    heads: list[str]
    groups: list[tuple[tuple[str, str], list[Cell]]]  # (kind, runs)
    runs: list[tuple[tuple[str, str, str], list[Cell]]]  # (run, kind, state)
    not_recorded: list[str]


def cost(record: Record) -> Cost:
    """What the run took so far, in whichever study."""
    training, measuring = record.pace.seconds or None, _measuring(record.measures)
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


def _measuring(rows: Sequence[MeasureRow]) -> float | None:
    """The seconds of all evaluations. One begins at another moment, with a set that the one before had, or, as its rows
    count on, with a row of fewer seconds."""
    moment, sets, ends = (-1.0, -1), set[str](), list[float]()
    for row in rows:
        if row.seconds is None:
            continue
        if (row.epoch, row.step) != moment or row.images in sets or row.seconds < ends[-1]:
            moment, sets = (row.epoch, row.step), set()
            ends.append(0.0)
        ends[-1] = row.seconds
        sets.add(row.images)
    return sum(ends) if ends else None


def cost_here(record: Record) -> Cost:
    """What the run took so far in the study that has it: all of it, unless the study took it over."""
    if (mark := _mark(record)) is None or record.end is None:
        return cost(record)
    seconds, joules = max(record.end.seconds - mark.seconds, 0.0), None
    if not seconds:
        return Cost()
    if record.end.joules is not None and mark.joules is not None:
        joules = max(record.end.joules - mark.joules, 0.0)
    return Cost(measuring=seconds, wall=seconds, joules=joules)


def _mark(record: Record) -> TakenOver | None:
    return record.end.taken_over if isinstance(record.end, FinishedJson) else None


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
    runs = [cost_here(record) for record in records]
    begun = [run for run in runs if run.wall is not None]
    whole = total(begun)
    shown = [column for column in COLUMNS if getattr(whole, column.field) is not None]
    both = list(zip(records, runs, strict=True))
    kinds: dict[str, list[tuple[Record, Cost]]] = {}
    for record, run in both:
        kinds.setdefault(_kind(record), []).append((record, run))
    if len(kinds) > 1:
        kinds["all runs"] = both
    absent = [column for column in COLUMNS if column not in shown and column.field not in ("gpu", "cpu")]
    lacking = [column.label for column in absent]
    if whole.gpu is None and whole.cpu is None:
        lacking.append("GPU or core time")
    return Costs(
        _sentence(whole, len(begun), both),
        [column.head(whole) for column in shown],
        [((kind, _counted(of)), _cells([run for _, run in of], shown, whole)) for kind, of in kinds.items()],
        [
            ((record.run.run, _kind(record), record.state), _cells([run], shown, whole))
            for record, run in both
            if run.wall is not None or _mark(record)
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


def _counted(runs: Sequence[tuple[Record, Cost]]) -> str:
    """How many have begun here, of how many that are not taken over; how many are, and took nothing here."""
    begun = sum(run.wall is not None for _, run in runs)
    taken = sum(run.wall is None and _mark(record) is not None for record, run in runs)
    own = len(runs) - taken
    return (f"{begun:,}" if begun == own else f"{begun:,} of {own:,}") + (f" + {taken:,} taken over" if taken else "")


def _cells(runs: Sequence[Cost], shown: Sequence[Column], every: Cost) -> list[Cell]:
    """A cell for each column, in the unit that suits all runs; a run that has not begun is not missed."""
    begun = [run for run in runs if run.wall is not None]
    whole, out = total(begun), []
    for column in shown:
        value = getattr(whole, column.field)
        if value is None:
            out.append(Cell(None, "not recorded" if begun else ""))
            continue
        # a run on GPUs has no core time, and the other way round: neither is missing
        fields = ("gpu", "cpu") if column.field in ("gpu", "cpu") else (column.field,)
        missed = sum(all(getattr(run, name) is None for name in fields) for run in begun)
        remark = f"without {missed} of {len(begun)} runs" if missed else ""
        number = value / column.unit(every)[0]
        out.append(Cell(number, amount(number), remark))
    return out


def _sentence(whole: Cost, begun: int, runs: Sequence[tuple[Record, Cost]]) -> str:
    """The whole in words."""
    taken = [(mark, run) for record, run in runs if (mark := _mark(record)) is not None]
    said = [_here(whole, begun)] if whole.wall is not None else []
    if not said and (len(taken) < len(runs) or not runs):
        said = ["No run has recorded its time yet"]
    said += [_elsewhere(taken)] if taken else []
    return f"{'; '.join(said)}."


def _here(whole: Cost, begun: int) -> str:
    """What the runs took in the study, in words."""
    runs = "1 run has" if begun == 1 else f"{begun:,} runs have"
    wall, _, _, gpu, cpu, _, energy = (_in_words(column, whole) for column in COLUMNS)
    said = f"{runs} taken {wall}" + (", added up" if begun > 1 else "")
    devices = [_by_device("GPU", gpu), _by_device("core", cpu)]
    said += f" ({', '.join(filter(None, devices))})" if any(devices) else ""
    said += f", {energy}" if energy else ""
    where = f" on {whole.device}" if whole.device else ""
    pace = f", training at {amount(whole.pairs_per_s)} pairs/s on average" if whole.pairs_per_s is not None else ""
    return f"{said}{where}{pace}"


def _elsewhere(taken: Sequence[tuple[TakenOver, Cost]]) -> str:
    """What the runs that were taken over took before, in words; of each where, and what it took here."""
    studies = {mark.study for mark, _ in taken}
    there = Cost(wall=sum(mark.seconds for mark, _ in taken))
    runs, they = ("1 run was", "it") if len(taken) == 1 else (f"{len(taken):,} runs were", "they")
    again = sum(here.wall is not None for _, here in taken)
    source = studies.pop() if len(studies) == 1 else "other studies"
    words = f"{runs} taken over from {source}, where {they} took {_in_words(COLUMNS[0], there)}"
    return words + (f" ({again:,} measured again here)" if again else "")


def _by_device(device: str, time: str) -> str:
    """'9.19 core-hours' of '9.19 h'."""
    number, _, unit = time.partition(" ")
    return f"{number} {device}-{IN_FULL[unit]}" if time else ""


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
