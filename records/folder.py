"""What lies in a study's folder and in a run's, and how its JSON files are read and written.

runs/NAME/study.json                  what was asked, and the runs that answer it (records/study_json.py)
runs/NAME/STAGE-FINGERPRINT/          one run:
    spec.json card.json               what decides its result; what a reader wants to know of it (records/card.py)
    metrics.jsonl                     its journal (records/rows.py)
    finished.json | stopped.json | failed.json      how it ended (records/ending.py)
"""

import json
import os
import socket
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

RUNS = Path("runs")  # all studies, below the folder that a command is given in
WEIGHTS = "weights.safetensors"


class RecordFile(BaseModel):
    """A JSON file of a study or of a run: written by the engine and read by whoever wants to know, as one typed model."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    FILE: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The file in a folder; None if there is none, or if it does not hold what it should."""
        try:
            return cls.model_validate_json((folder / cls.FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Writes the file whole or not at all."""
        write_json(folder / self.FILE, self.model_dump(mode="json"))


def finished(folder: Path) -> bool:
    """Whether the run in a folder ended and its weights are there."""
    return (folder / "finished.json").is_file() and (folder / WEIGHTS).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or none whole."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all, whoever else writes the same file."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes the file so that readers see the old or the new one, never a part."""
    staged = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
