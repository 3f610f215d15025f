"""How a run ended: finished.json, stopped.json (pruned by the sweep's rule) or failed.json."""

import socket
import time
from pathlib import Path
from typing import Any, ClassVar

from records.digests import file_digest
from records.folder import WEIGHTS, RecordFile, finished
from records.json_file import damaged


class Usage(RecordFile):
    """What a run took over all its launches: seconds of wall time, and joules of its GPUs where they can tell."""

    seconds: float
    joules: float | None = None


class FinishedJson(Usage):
    """A run that came to its end. `journal` is the length of its journal in bytes, `weights` the SHA-256 of its weights,
    `files` those of its other files by name, `measured` what its last evaluation measured, as `Run.measured` says it."""

    FILE: ClassVar[str] = "finished.json"
    steps: int
    journal: int
    weights: str
    files: dict[str, str] = {}  # empty of runs of before there were digests: they are not verified
    measured: dict[str, Any]


class PrunedJson(Usage):
    """A run that the sweep's rule ended early, at a step, and why."""

    FILE: ClassVar[str] = "stopped.json"
    REMEDY: ClassVar[str] = "put a copy of it back, or delete it, and the run goes on from its checkpoint"
    step: int
    why: str


class FailedJson(RecordFile):
    """A run that can't be carried out until the user puts something right: when, on which host, and what to do."""

    FILE: ClassVar[str] = "failed.json"
    REMEDY: ClassVar[str] = "give the study's command again, which tries the run again"
    message: str
    when: str
    host: str

    @classmethod
    def now(cls, message: str) -> "FailedJson":
        """A failure on this machine at this moment."""
        return cls(message=message, when=time.strftime("%Y-%m-%d %H:%M:%S"), host=socket.gethostname())


def verify_files(folder: Path, *names: str) -> None:
    """Damaged unless these files of a finished run are what its finished.json says, as far as it says it; without names
    all that it knows. Nothing is verified where there is no finished.json: other programs' weights may lie anywhere."""
    end = FinishedJson.read(folder)
    if end is None:
        return
    known = {WEIGHTS: end.weights, **end.files}
    for name in names or known:
        path = folder / name
        if name not in known:
            continue
        if not path.is_file():
            raise damaged(path, "it is missing", FinishedJson.REMEDY)
        if file_digest(path) != known[name]:
            raise damaged(path, f"its SHA-256 is not that in {FinishedJson.FILE}", FinishedJson.REMEDY)


def measured_as(folder: Path, measured: dict[str, Any]) -> bool:
    """Whether the run in a folder is finished and its last evaluation measured what the spec asks for now."""
    if not finished(folder):
        return False
    end = FinishedJson.read(folder)
    return end is not None and end.measured == measured
