"""SIGTERM and Ctrl-C.

While a run trains, the first asks it to save and stop after the next journal row; at any other time there is nothing
to save, and it ends what is done. A second one ends the process at once; not within moments of the first, as a launcher
passes on what its whole group has received.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 10.0  # seconds in which a process ends that has nothing to save
SAME = 2.0  # seconds within which two signals are one


class Interrupted(BaseException):
    """A signal asked this process to stop, and nothing is saved; says why."""

    def __init__(self, why: str = "there was nothing to save") -> None:
        super().__init__(why)


class StopSignal:
    """From now on the signal that asked this process to stop; its `number` is 0 until one does."""

    def __init__(self) -> None:
        self.number = 0
        self._saving, self._since = 0, 0.0
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def __call__(self) -> bool:
        """Whether one did."""
        return bool(self.number)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """In here a signal only asks: whoever asks back saves."""
        self._saving += 1
        try:
            yield
        finally:
            self._saving -= 1

    def leave(self) -> None:
        """From now on a signal changes nothing: the process ends."""
        self._saving += 1

    @property
    def code(self) -> int:
        """The exit code that tells the signal, as shells and Slurm do."""
        return 128 + (self.number or signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if time.monotonic() - self._since > SAME:
                os._exit(128 + number)
            return
        self.number, self._since = number, time.monotonic()
        if not self._saving:
            last = threading.Timer(GRACE, os._exit, [128 + number])  # whatever cleaning up waits for
            last.daemon = True
            last.start()
            raise Interrupted
