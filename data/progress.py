"""How far something has come that takes a while: a bar on a terminal, a line every ten seconds elsewhere, on stderr."""

import sys
import time
from typing import Any


class Progress:
    """Called with (done, total); nothing is shown in the first `quiet` seconds, so that what is quick says nothing."""

    EVERY = 10.0  # seconds between lines where there is no terminal

    def __init__(self, title: str, unit: str, start: int = 0, quiet: float = 2.0) -> None:
        """`start` is what was done before, which tells nothing about the time left."""
        self.title, self.unit, self.start, self.quiet = title, unit, start, quiet
        self.began, self.last_line = time.monotonic(), 0.0
        self.bars: Any = None  # rich's, once something is shown on a terminal
        self.task: Any = None
        self.last = ""  # what the bar said last, in full

    def __call__(self, done: int, total: int, words: str = "", now: bool = False) -> None:
        """Shows it, with the rate or other `words`; a line appears `now` or when it is time for one."""
        seconds = time.monotonic() - self.began
        if seconds < self.quiet:
            return
        words = words or f"{(done - self.start) / max(seconds, 1e-9):,.1f} a second"
        if sys.stderr.isatty():
            self._draw(done, total, words)
        elif now or time.monotonic() - self.last_line >= self.EVERY:
            self.last_line = time.monotonic()
            left = seconds / max(1, done - self.start) * (total - done)
            ending = f", {left:,.0f} s left" if done > self.start else ""
            print(f"{self.title}: {done:,} of {total:,} {self.unit}, {words}{ending}", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int, words: str) -> None:
        if self.bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self.bars = Bars(
                TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[unit]}", markup=False), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[words]}", markup=False), console=Console(stderr=True),
                transient=True,
            )  # fmt: skip
            self.task = self.bars.add_task(self.title, total=total, completed=self.start, unit=self.unit, words="")
            self.bars.start()
        self.last = f"{done:,} of {total:,} {self.unit}, {words}"
        self.bars.update(self.task, completed=done, total=total, words=words)

    def line(self, words: str) -> None:
        """Says something once, above the bar if there is one."""
        if self.bars is not None:
            self.bars.console.print(f"{self.title}: {words}", markup=False, highlight=False)
        else:
            print(f"{self.title}: {words}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves a line in the bar's place, which no edge of a terminal cuts."""
        if self.bars is not None:
            self.bars.stop()
            seconds = time.monotonic() - self.began
            print(f"{self.title}: {self.last}, {seconds:,.0f} s", file=sys.stderr, flush=True)
