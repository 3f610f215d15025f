"""SIGTERM and Ctrl-C: the first asks to save and stop after the next journal row, the second ends the process at once."""

import os
import signal
from types import FrameType


class StopSignal:
    """From now on the signal that asked this process to stop; its `number` is 0 until one does."""

    def __init__(self) -> None:
        self.number = 0
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
