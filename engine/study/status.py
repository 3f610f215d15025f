"""What runs where: every run of a study, its process, its last sign of life, its step and rate, and what failed.

    python -m engine.study.status runs/demo

reads the run folders alone, so it works from any machine that sees them, while the study is carried out or after.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data.refusal import UserError
from engine.study import lock as claim
from engine.study.points import measured_points
from measures.frontier import CAP, Point, best_accuracy, lowest_asr
from records.card import Card
from records.ending import FailedJson, FinishedJson, PrunedJson
from records.folder import finished
from records.rows import FILE, BadRow, MeasureRow, StepRow, read_rows
from records.study_json import RunEntry, StudyJson

if TYPE_CHECKING:
    from rich.table import Table

LEFT = ("to do", "waiting", "running", "lost")  # states of runs that have not ended
ORDER = ("running", "lost", "failed", "waiting", "to do", "stopped", "finished")


@dataclass
class Seen:
    """One run as its folder tells it."""

    run: str
    title: str
    stage: str
    start: str | None
    state: str = "to do"
    where: str = ""
    age: float | None = None  # seconds since its process's last sign of life
    step: int = 0
    steps: int | None = None
    rate: float | None = None  # pairs a second
    seconds: float | None = None  # that it took, where it has ended
    words: str = ""
    points: list[Point[float]] = field(default_factory=list)  # what its cleaning has reached


@dataclass
class Survey:
    """A study at one moment."""

    folder: Path
    runs: list[Seen]

    def count(self, *states: str) -> int:
        """How many runs are in one of these states."""
        return sum(seen.state in states for seen in self.runs)

    @property
    def best(self) -> Point[float] | None:
        """The most accurate point of any cleaning at ASR <= 5 %, or, where there is none, that of the lowest ASR."""
        points = [point for seen in self.runs for point in seen.points]
        return best_accuracy(points, CAP) or lowest_asr(points, 0.0)

    def left(self, jobs: int) -> float | None:
        """Seconds until all is done, if `jobs` runs go on at once and runs of a stage take equally long; None if no run of a
        stage that is left has ended."""
        total = 0.0
        for stage in {seen.stage for seen in self.runs if seen.state in LEFT}:
            took = [s.seconds for s in self.runs if s.stage == stage and s.seconds is not None]
            if not took:
                return None
            mean = sum(took) / len(took)
            for seen in self.runs:
                if seen.stage == stage and seen.state in LEFT:
                    total += mean * (1 - seen.step / seen.steps if seen.steps else 1.0)
        return total / max(1, jobs)

    def line(self, jobs: int) -> str:
        """The survey in one line."""
        words = [
            f"{self.count('finished', 'stopped')} of {len(self.runs)} runs done",
            f"{self.count('running')} running",
            f"{self.count('to do', 'waiting', 'lost')} left",
        ]
        if failed := self.count("failed"):
            words.append(f"{failed} failed")
        if (best := self.best) is not None:
            words.append(f"best so far top-1 {100 * best.top1:.1f} % at ASR {100 * best.asr:.1f} %")
        if (seconds := self.left(jobs)) is not None and self.count(*LEFT):
            words.append(f"about {spoken(seconds)} left")
        return ", ".join(words)


def spoken(seconds: float) -> str:
    """A duration for people: '40 s', '12 min', '3.5 h'."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Surveyor:
    """Surveys a study again and again; reads only what has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[Path, tuple[tuple[int, int], list[StepRow | BadRow | MeasureRow]]] = {}
        self.over: dict[str, Seen] = {}

    def survey(self) -> Survey:
        """The study now; UserError if the folder is none."""
        plan = StudyJson.read(self.folder)
        if plan is None:
            raise UserError(
                f"{self.folder} is not a study: expected a folder with study.json in it, which engine/run.py writes, "
                "such as runs/demo"
            )
        clock = claim.now(self.folder)
        return Survey(self.folder, [self._see(run, clock) for run in plan.runs])

    def _see(self, run: RunEntry, clock: float) -> Seen:
        if run.run in self.over:
            return self.over[run.run]
        home = self.folder / run.run
        seen = Seen(run.run, run.title or run.run, run.stage, run.start)
        rows = self._rows(home / FILE)
        steps = [row for row in rows if not isinstance(row, MeasureRow)]
        if steps:
            seen.step, seen.rate = steps[-1].step, steps[-1].pairs_per_s
        card = Card.read(home)
        seen.steps = card.steps if card else None
        if seen.stage == "clean":
            seen.points = measured_points(rows)
        self._judge(seen, home, clock)
        return seen

    def _judge(self, seen: Seen, home: Path, clock: float) -> None:
        held = claim.holder(home, clock) if home.is_dir() else None
        if finished(home):
            end = FinishedJson.read(home)
            seen.state, seen.seconds = "finished", end.seconds if end else None
            self.over[seen.run] = seen
        elif held is not None:
            seen.where, seen.age = f"{held.host}:{held.pid}", held.age
            seen.state = "running" if held.alive else "lost"
            if not held.alive:
                seen.words = "its process is gone; the run goes on from its checkpoint when another takes it"
        elif (pruned := PrunedJson.read(home)) is not None:
            seen.state, seen.words, seen.seconds = "stopped", pruned.why, pruned.seconds
        elif (failure := FailedJson.read(home)) is not None:
            seen.state, seen.where, seen.words = "failed", failure.host, failure.message
        elif seen.start and not seen.start.startswith("weights-") and not finished(self.folder / seen.start):
            seen.state = "waiting"

    def _rows(self, path: Path) -> list[StepRow | BadRow | MeasureRow]:
        try:
            stat = path.stat()
        except OSError:
            return []
        mark = (stat.st_mtime_ns, stat.st_size)
        if path not in self.kept or self.kept[path][0] != mark:
            self.kept[path] = (mark, read_rows(path))
        return self.kept[path][1]


def table(survey: Survey, jobs: int, rows: int | None = None) -> "Table":
    """The survey as a table, what happens first; at most so many rows."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=f"{survey.folder}: {survey.line(jobs)}", title_justify="left")
    for name in ("run", "what", "state", "where", "sign of life", "step", "pairs/s", "top-1 / ASR"):
        out.add_column(name, overflow="fold", justify="right" if name in ("sign of life", "step", "pairs/s") else "left")
    shown = sorted(survey.runs, key=lambda seen: ORDER.index(seen.state))
    for seen in shown[:rows]:
        last = seen.points[-1] if seen.points else None
        cells = (
            seen.run,
            seen.title,
            seen.state + (f": {seen.words}" if seen.words else ""),
            seen.where,
            "" if seen.age is None else f"{spoken(seen.age)} ago",
            "" if seen.steps is None else f"{seen.step:,}/{seen.steps:,}",
            "" if seen.rate is None or seen.state != "running" else f"{seen.rate:,.0f}",
            "" if last is None else f"{100 * last.top1:.1f} / {100 * last.asr:.1f} %",
        )
        out.add_row(*(escape(cell) for cell in cells))
    if rows is not None and len(shown) > rows:
        out.caption = f"and {len(shown) - rows:,} more"
    return out


def main(given: list[str]) -> int:
    """The command; exit code 2 when the folder is no study."""
    parser = argparse.ArgumentParser(prog="python -m engine.study.status", description="What runs where in a study.")
    parser.add_argument("study", type=Path, help="the folder that engine/run.py writes, such as runs/demo")
    try:
        survey = Surveyor(parser.parse_args(given).study).survey()
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(survey, max(1, survey.count("running"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
