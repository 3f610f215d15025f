"""How a run ended: finished.json, stopped.json (pruned by the sweep's rule) or failed.json."""

import socket
import time
from pathlib import Path
from typing import Any, ClassVar

from records.folder import RecordFile, finished


class Usage(RecordFile):
    """What a run took over all its launches: seconds of wall time, and joules of its GPUs where they can tell."""

    seconds: float
    joules: float | None = None


class FinishedJson(Usage):
    """A run that came to its end. `journal` is the length of its journal in bytes, `weights` the SHA-256 of its weights,
    `measured` what its last evaluation measured, as `Run.measured` says it."""

    FILE: ClassVar[str] = "finished.json"
    steps: int
    journal: int
    weights: str
    measured: dict[str, Any]


class PrunedJson(Usage):
    """A run that the sweep's rule ended early, at a step, and why."""

    FILE: ClassVar[str] = "stopped.json"
    step: int
    why: str


class FailedJson(RecordFile):
    """A run that can't be carried out until the user puts something right: when, on which host, and what to do."""

    FILE: ClassVar[str] = "failed.json"
    message: str
    when: str
    host: str

    @classmethod
    def now(cls, message: str) -> "FailedJson":
        """A failure on this machine at this moment."""
        return cls(message=message, when=time.strftime("%Y-%m-%d %H:%M:%S"), host=socket.gethostname())


def measured_as(folder: Path, measured: dict[str, Any]) -> bool:
    """Whether the run in a folder is finished and its last evaluation measured what the spec asks for now."""
    if not finished(folder):
        return False
    end = FinishedJson.read(folder)
    return end is not None and end.measured == measured
