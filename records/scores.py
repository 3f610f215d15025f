"""scores.jsonl and flagged.jsonl: how suspicious training pairs are, a line each, of ours or of another program.

    {"key": "000000012", "kind": "slof", "score": 1.25, "digest": "0123456789ab"}

A higher score is more suspicious. `kind` is the detector; `digest` as in records/lines.py, where we wrote the line. Files
of others need neither, and a line of theirs that is no such object, or whose score is not finite, is refused by its number.
Read line by line: a file of billions needs no memory.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.refusal import Missing, UserError
from records.json_file import damaged
from records.lines import digest_of_line, parted, seal

SCORES, FLAGGED = "scores.jsonl", "flagged.jsonl"
LONGEST = 1 << 16  # bytes of a line
REMEDY = "put a copy of it back, or detect again"
WANTS = 'give a text file with a line such as {"key": "000000012", "kind": "slof", "score": 1.25} for each pair'


class ScoreRow(BaseModel):
    """One pair's score by one detector; `kind` is empty where another program does not tell it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)
    key: str = Field(min_length=1)
    kind: str = Field("", max_length=100)
    score: float


class Numbered(NamedTuple):
    """A row and the number of its line, from 1."""

    number: int
    row: ScoreRow


class ScoreWriter:
    """Writes rows to a file, whole or not at all: used as a context, it is there when that ends without an exception."""

    def __init__(self, path: Path) -> None:
        self.path, self._staged, self._last = path, path.with_name(f".{path.name}-{os.getpid()}"), ""

    def __enter__(self) -> Self:
        self._file = self._staged.open("w", encoding="utf-8")
        return self

    def add(self, rows: Iterable[tuple[str, str, float]]) -> None:
        """Writes (key, kind, score) of each row; the score is finite."""
        for key, kind, score in rows:
            line, self._last = seal(json.dumps({"key": key, "kind": kind, "score": score}, allow_nan=False), self._last)
            self._file.write(line)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._staged.replace(self.path)
        finally:
            self._file.close()
            self._staged.unlink(missing_ok=True)


def read_scores(path: Path) -> Iterator[Numbered]:
    """The rows of a file in turn; UserError for one that is none, Damaged for one of ours that is not as it was written."""
    before, sealed = "", False
    for number, line in _lines(path):
        text, digest = parted(line)
        if digest is None:
            if sealed:
                raise damaged(path, f"line {number:,} is not as it was written", REMEDY)
            if not text.strip():
                continue
        elif digest != digest_of_line(text, before):
            raise damaged(path, f"line {number:,} is not as it was written", REMEDY)
        else:
            before, sealed = digest, True
        yield Numbered(number, _row(path, number, text))


def _row(path: Path, number: int, text: bytes) -> ScoreRow:
    try:
        return ScoreRow.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        what = f"its {where} is no {'finite number' if where == 'score' else 'text'}" if where else "it is no JSON object"
        if fault["type"] == "missing":
            what = f"it has no {where}"
        raise UserError(f"{path}:{number}: {what}; {WANTS}") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, its bytes without the end) of each line; UserError for a file that can't be read."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file; {WANTS}")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    raise UserError(f"{path}:{number}: the line has more than {LONGEST:,} bytes; {WANTS}")
                yield number, line.rstrip(b"\r\n")
    except FileNotFoundError as error:
        raise Missing(f"{path}: {error.strerror}; {WANTS}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {WANTS}") from None
