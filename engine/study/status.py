"""What runs where: every run of a study, its process, its last sign of life, its step and rate, and what failed.

    python -m engine.study runs/demo

reads the run folders alone, so it works from any machine that sees them, while the study is carried out or after.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data.refusal import UserError
from engine.study import lock
from engine.study.points import measured_points
from engine.study.time_left import UNENDED, duration, time_left
from measures.frontier import CAP, FrontierPoint, best_accuracy, lowest_asr
from records.card import Card
from records.detection import DetectionJson
from records.ending import FailedJson, FinishedJson, PrunedJson, run_journal
from records.folder import finished
from records.json_file import Damaged
from records.rows import FILE, JournalRows, MeasureRow
from records.study_json import RunEntry, StudyJson

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

ORDER = ("running", "lost", "failed", "waiting", "to do", "stopped", "finished")
LINES = 15.0, 60.0  # seconds between lines where there is no terminal: the first, and what they grow to
SHOWN = 30  # rows of a table, if not all are asked for


@dataclass
class RunStatus:
    """One run as its folder shows it."""

    run: str
    title: str
    stage: str
    start: str | None
    scored: str | None = None  # the run whose scores it waits for
    state: str = "to do"
    where: str = ""
    age: float | None = None  # seconds since its process's last sign of life
    step: int = 0
    steps: int | None = None
    batch: int | None = None  # pairs
    objective: str = ""  # of its stage
    rate: float | None = None  # pairs a second
    seconds: float | None = None  # that it took, where it has ended
    reason: str = ""  # of its state, where that needs one
    points: list[FrontierPoint[float]] = field(default_factory=list)  # what its cleaning has reached
    top1: float | None = None  # as last measured
    asr: float | None = None


@dataclass
class StudyStatus:
    """A study at one moment."""

    folder: Path
    runs: list[RunStatus]

    def count(self, *states: str) -> int:
        """How many runs are in one of these states."""
        return sum(run.state in states for run in self.runs)

    @property
    def best(self) -> FrontierPoint[float] | None:
        """The most accurate point of any cleaning at ASR <= 5 %, or, where there is none, that of the lowest ASR."""
        points = [point for run in self.runs for point in run.points]
        return best_accuracy(points, CAP) or lowest_asr(points, 0.0)

    def line(self, jobs: int) -> str:
        """The study in one line."""
        parts = [
            f"{self.count('finished', 'stopped')} of {len(self.runs)} runs done",
            f"{self.count('running')} running{self._progress()}",
            f"{self.count('to do', 'waiting', 'lost')} left",
        ]
        if failed := self.count("failed"):
            parts.append(f"{failed} failed")
        if (best := self.best) is not None:
            parts.append(f"best so far top-1 {100 * best.top1:.1f} % at ASR {100 * best.asr:.1f} %")
        if self.count(*UNENDED) and (left := time_left(self.runs, jobs).text()) is not None:
            parts.append(left)
        return ", ".join(parts)

    def _progress(self) -> str:
        """How far the runs are that go on, at most four of them."""
        shares = [run.step / run.steps for run in self.runs if run.state == "running" and run.steps]
        return (
            f" ({', '.join(f'{100 * share:.0f} %' for share in shares[:4])}{', ...' if shares[4:] else ''})"
            if shares
            else ""
        )


class StatusReader:
    """Reads a study's folder again and again, but only what has changed; `stage` as engine/run.py has it."""

    def __init__(self, folder: Path, stage: str | None = None) -> None:
        self.folder, self.stage = folder, stage
        self.journals: dict[Path, tuple[tuple[int, int], JournalRows]] = {}
        self.finished: dict[str, RunStatus] = {}

    def read(self) -> StudyStatus:
        """The study now; UserError if the folder is none."""
        study = StudyJson.read(self.folder)
        if study is None:
            raise UserError(
                f"{self.folder} is not a study: expected a folder with study.json in it, which engine/run.py writes, "
                "such as runs/demo"
            )
        try:
            clock = lock.folder_time(self.folder)
        except OSError:  # it may be read alone
            clock = time.time()
        return StudyStatus(self.folder, [self._read_run(entry, clock) for entry in study.runs if self._asked(entry)])

    def _asked(self, entry: RunEntry) -> bool:
        return self.stage is None or (entry.stage == "clean") == (self.stage == "clean")

    def _read_run(self, entry: RunEntry, clock: float) -> RunStatus:
        if entry.run in self.finished:
            return self.finished[entry.run]
        home = self.folder / entry.run
        less = entry.without
        scored = less.whole if less is not None and less.way == "detector" else None
        run = RunStatus(entry.run, entry.title or entry.run, entry.stage, entry.start, scored)
        run.objective = (
            (entry.cleaner or entry.clean_objective or "") if entry.stage == "clean" else entry.pretrain_objective
        )
        rows, damaged = self._rows(home / FILE)
        steps = [row for row in rows if not isinstance(row, MeasureRow)]
        if steps:
            run.step, run.rate = steps[-1].step, steps[-1].pairs_per_s
        card = Card.read_whole(home)
        run.steps, run.batch = (card.steps, card.batch) if card else (None, None)
        for row in rows:
            if isinstance(row, MeasureRow):
                run.top1, run.asr = (b if a is None else a for a, b in ((row.top1, run.top1), (row.asr, run.asr)))
        if run.stage == "clean" and entry.control is None and entry.after is None:
            run.points = measured_points(rows)
        self._read_state(run, home, clock)
        if damaged:
            run.reason = "; ".join(part for part in (run.reason, f"{len(damaged)} lines of {FILE} are damaged") if part)
        return run

    def _read_state(self, run: RunStatus, home: Path, clock: float) -> None:
        owner = lock.owner(home, clock) if home.is_dir() else None
        if finished(home):
            run.state = "finished"
            self.finished[run.run] = run
            try:
                end = FinishedJson.read(home)
            except Damaged as damage:
                run.reason = damage.fault
            else:
                run.seconds = end.seconds if end else None
        elif owner is not None:
            run.where, run.age = f"{owner.host}:{owner.pid}", owner.age
            run.state = "running" if owner.alive else "lost"
            if not owner.alive:
                run.reason = "its process is gone; the run goes on from its checkpoint when another takes it"
        elif (pruned := PrunedJson.read_whole(home)) is not None:
            run.state, run.reason, run.seconds = "stopped", pruned.why, pruned.seconds
        elif (failure := FailedJson.read_whole(home)) is not None:
            run.state, run.where, run.reason = "failed", failure.host, failure.message
        elif self._waits(run):
            run.state = "waiting"

    def _waits(self, run: RunStatus) -> bool:
        """Whether the run that it starts from is not finished, or the one whose scores it needs not scored."""
        if run.scored:
            return not (self.folder / run.scored / DetectionJson.FILE).is_file()
        return bool(run.start and not run.start.startswith("weights-") and not finished(self.folder / run.start))

    def _rows(self, path: Path) -> JournalRows:
        try:
            stat = path.stat()
        except OSError:
            return JournalRows([], [])
        version = (stat.st_mtime_ns, stat.st_size)
        if path not in self.journals or self.journals[path][0] != version:
            self.journals[path] = (version, run_journal(path.parent))
        return self.journals[path][1]


def table(study: StudyStatus, jobs: int, rows: int | None = None) -> "Table":
    """The study as a table, what happens first; at most so many rows."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=f"{study.folder}: {study.line(jobs)}", title_justify="left")
    for name in ("run", "what", "state", "where", "sign of life", "step", "pairs/s", "top-1 / ASR"):
        out.add_column(name, overflow="fold", justify="right" if name in ("sign of life", "step", "pairs/s") else "left")
    runs = sorted(study.runs, key=lambda run: ORDER.index(run.state))
    for run in runs[:rows]:
        cells = (
            run.run,
            run.title,
            run.state + (f": {run.reason}" if run.reason else ""),
            run.where,
            "" if run.age is None else f"{duration(run.age)} ago",
            "" if run.steps is None else f"{run.step:,}/{run.steps:,}",
            "" if run.rate is None or run.state != "running" else f"{run.rate:,.0f}",
            "" if run.top1 is None and run.asr is None else f"{_percent(run.top1)} / {_percent(run.asr)} %",
        )
        out.add_row(*(escape(cell) for cell in cells))
    if rows is not None and len(runs) > rows:
        out.caption = f"and {len(runs) - rows:,} more; --all shows them"
    return out


def _percent(rate: float | None) -> str:
    return "?" if rate is None else f"{100 * rate:.1f}"


class LiveView:
    """A study on the terminal while its runs are carried out elsewhere: a live table, or a line now and then where there is
    no terminal."""

    def __init__(self, folder: Path, stage: str | None) -> None:
        self.reader = StatusReader(folder, stage)
        self.live: Live | None = None
        self.line, self.due, self.pause = "", 0.0, LINES[0]

    def show(self, jobs: int) -> None:
        """Shows the study as it is now."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            if self.live is None:
                self.live = Live(console=Console(stderr=True), auto_refresh=False)
                self.live.start()
            self.live.update(table(self.reader.read(), jobs, SHOWN), refresh=True)
        elif time.monotonic() >= self.due:
            line = self.reader.read().line(jobs)
            self.due, self.pause = time.monotonic() + self.pause, min(LINES[1], 1.2 * self.pause)
            if line != self.line:
                self.line = line
                print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the last table on the terminal."""
        if self.live is not None:
            self.live.stop()


def main(args: list[str]) -> int:
    """The command; exit code 2 when the folder is no study."""
    parser = argparse.ArgumentParser(prog="python -m engine.study", description="What runs where in a study.")
    parser.add_argument("study", type=Path, help="the folder that engine/run.py writes, such as runs/demo")
    parser.add_argument(
        "--all", action="store_true", help=f"every run; otherwise the first {SHOWN} of those that matter now"
    )
    options = parser.parse_args(args)
    try:
        study = StatusReader(options.study).read()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(study, max(1, study.count("running")), None if options.all else SHOWN))
    return 0
