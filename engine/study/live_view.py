"""A study on the terminal while its runs are carried out elsewhere."""

import sys
import time
from typing import Any

from engine.study.status import Surveyor, table

LINE = 15.0  # seconds between lines where there is no terminal
SHOWN = 30  # rows of the live table


class Screen:
    """The study on the terminal: a live table, or a line now and then where there is none."""

    def __init__(self) -> None:
        self.live: Any = None
        self.said = -LINE
        self.words = ""

    def show(self, surveyor: Surveyor, jobs: int) -> None:
        """Shows the study as it is now."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            if self.live is None:
                self.live = Live(console=Console(stderr=True), auto_refresh=False)
                self.live.start()
            self.live.update(table(surveyor.survey(), jobs, SHOWN), refresh=True)
            return
        if time.monotonic() - self.said >= LINE:
            words = surveyor.survey().line(jobs)
            self.said = time.monotonic()
            if words != self.words:
                self.words = words
                print(words, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the last table on the terminal."""
        if self.live is not None:
            self.live.stop()
