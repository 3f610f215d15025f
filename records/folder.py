"""What lies in a study's folder and in a run's, and how its JSON files are read and written (records/json_file.py).

runs/NAME/study.json                  what was asked, and the runs that answer it (records/study_json.py)
runs/NAME/STAGE-FINGERPRINT/          one run:
    spec.json                         what decides its result (records/spec_json.py)
    card.json                         what a reader wants to know of it (records/card.py)
    metrics.jsonl                     its journal (records/rows.py)
    finished.json | stopped.json | failed.json      how it ended (records/ending.py)
"""

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from records.json_file import Damaged, damaged, read_json, write_json

RUNS = Path("runs")  # all studies, below the folder that a command is given in
WEIGHTS = "weights.safetensors"


class RecordFile(BaseModel):
    """A JSON file of a study or of a run: written by the engine and read by whoever wants to know, as one typed model."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    FILE: ClassVar[str]
    REMEDY: ClassVar[str] = "put a copy of it back, or delete its folder, and the run begins anew"

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The file in a folder; None if there is none. Damaged if it does not hold what was written."""
        path = folder / cls.FILE
        content = read_json(path, cls.REMEDY)
        if content is None:
            return None
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise damaged(path, f"{where}: {first['msg']}" if where else first["msg"], cls.REMEDY) from None

    @classmethod
    def read_whole(cls, folder: Path) -> Self | None:
        """The same, and None if it is damaged too: for those who only show what is there."""
        try:
            return cls.read(folder)
        except Damaged:
            return None

    def write(self, folder: Path) -> None:
        """Writes the file with its digest, whole or not at all."""
        write_json(folder / self.FILE, self.model_dump(mode="json"))


def finished(folder: Path) -> bool:
    """Whether the run in a folder ended and its weights are there."""
    return (folder / "finished.json").is_file() and (folder / WEIGHTS).is_file()
