"""How a run ended: finished.json, stopped.json (pruned by the sweep's rule) or failed.json."""

import socket
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from records.digests import file_digest
from records.folder import WEIGHTS, RecordFile, finished
from records.json_file import damaged
from records.manifest import least_journal
from records.rows import FILE, Amount, AnyRow, Count, JournalRows, read_journal, read_rows, whole_rows


class Usage(RecordFile):
    """What a run took over all its launches: seconds of wall time, and joules of its GPUs where they can tell."""

    seconds: Amount
    joules: Amount | None = None


class TakenOver(BaseModel):
    """Where a run was done that a study took over: the study, and what the run had taken when it came from there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    study: Annotated[str, Field(max_length=255)]
    seconds: Amount
    joules: Amount | None = None


class FinishedJson(Usage):
    """A run that came to its end. `journal` is the length of its journal in bytes, `weights` the SHA-256 of its weights,
    `files` those of its other files by name, `measured` what its last evaluation measured, as `Run.measured` says it.
    `taken_over` is None of a run that its study did itself, and of those taken over before this was noted."""

    FILE: ClassVar[str] = "finished.json"
    steps: Count
    journal: Count
    weights: str
    files: dict[str, str] = {}  # empty of runs of before there were digests: they are not verified
    measured: dict[str, Any]
    taken_over: TakenOver | None = Field(None, exclude_if=lambda mark: mark is None)


class PrunedJson(Usage):
    """A run that the sweep's rule ended early, at a step, and why."""

    FILE: ClassVar[str] = "stopped.json"
    REMEDY: ClassVar[str] = "put a copy of it back, or delete it, and the run goes on from its checkpoint"
    step: Count
    why: str


class FailedJson(RecordFile):
    """A run that can't be carried out until the user puts something right: when, on which host, and what to do; `diverged`
    if what came of its own training is why."""

    FILE: ClassVar[str] = "failed.json"
    REMEDY: ClassVar[str] = "give the study's command again, which tries the run again"
    message: str
    when: str
    host: str
    diverged: bool = False

    @classmethod
    def now(cls, message: str, diverged: bool = False) -> "FailedJson":
        """A failure on this machine at this moment."""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(message=message, when=when, host=socket.gethostname(), diverged=diverged)


def verify_files(folder: Path, *names: str) -> None:
    """Damaged unless these files of a finished run, those that are there, are what its finished.json says, as far as it says
    it. Nothing is verified where there is no finished.json: other programs' weights may lie anywhere."""
    end = FinishedJson.read(folder)
    known = {} if end is None else {WEIGHTS: end.weights, **end.files}
    for path in (folder / name for name in names if name in known):
        if path.is_file() and file_digest(path) != known[path.name]:
            raise damaged(path, f"its SHA-256 is not that in {FinishedJson.FILE}", FinishedJson.REMEDY)


def verify_run(folder: Path) -> None:
    """Damaged unless a finished run is whole: its weights, its journal, its other files."""
    end = FinishedJson.read(folder)
    if end is not None:
        verify_files(folder, WEIGHTS, *end.files)
        read_rows(folder / FILE, end.journal)


def run_journal(folder: Path) -> JournalRows:
    """What a run has written, up to the end that its finished.json tells; what is missing of that, or of what belongs to its
    newest checkpoint, is damaged."""
    if not (folder / FinishedJson.FILE).is_file():
        return read_journal(folder / FILE, least=least_journal(folder))
    end = FinishedJson.read_whole(folder)
    return read_journal(folder / FILE, None if end is None else end.journal)


def run_rows(folder: Path) -> list[AnyRow]:
    """The same rows; Damaged if the journal is."""
    return whole_rows(folder / FILE, run_journal(folder))


def measured_as(folder: Path, measured: dict[str, Any]) -> bool:
    """Whether the run in a folder is finished and its last evaluation measured what the spec asks for now."""
    if not finished(folder):
        return False
    end = FinishedJson.read(folder)
    return end is not None and end.measured == measured
