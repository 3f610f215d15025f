"""How far something has come that takes a while: a bar on a terminal, a line now and then elsewhere."""

import sys
import time


class Progress:
    """Called with (done, total); says the rate and the time left. Nothing is said of what takes under two seconds."""

    EVERY = 10.0  # seconds between lines where there is no terminal

    def __init__(self, title: str, what: str) -> None:
        self.title, self.what, self.began, self.said = title, what, time.monotonic(), 0.0
        self.shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if now - self.began < 2 or now - self.said < (0.2 if terminal else self.EVERY):
            return
        self.said, self.shown = now, True
        rate = done / (now - self.began)
        left = f"{(total - done) / rate:,.0f} s left" if done else "none done yet"
        words = f"{self.title}: {done:,} of {total:,} {self.what}, {rate:,.1f} a second, {left}"
        print(f"\r{words}" if terminal else words, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The last line, if any was shown."""
        if self.shown and sys.stderr.isatty():
            print(file=sys.stderr)
