"""metrics.jsonl, a run's journal: one JSON object a line (records/lines.py), each of one of three kinds.

A row has numbers under names of their own: the terms of a loss, the numbers of a measure. What every row of a kind has is a
field; the rest is in `model_extra`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from records.json_file import damaged
from records.lines import DIGEST, read_lines

TIMING = ("pairs_per_s", "seconds", "costs", DIGEST)  # what may differ between two runs of the same spec
FILE = "metrics.jsonl"
REMEDY = "put a copy of it back, or delete its folder, and the run begins anew"
LARGEST = 1e300  # a number beyond is taken for infinite

LARGEST_COUNT = 10**15  # a larger one is damage
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Answer = tuple[str, str, str, str]  # a picture's class, the target, the model's answer, its answer with the trigger


class Row(BaseModel):
    """What all rows have: how far the run was. Numbers are those of the global batch or of a whole evaluation set."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    epoch: Count | Annotated[float, Field(ge=0, le=LARGEST_COUNT)]
    step: Count

    def numbers(self) -> dict[str, float]:
        """The row's finite numbers by name, without its epoch and step."""
        fields = {**{name: getattr(self, name) for name in type(self).model_fields}, **(self.model_extra or {})}
        return {
            name: value
            for name, value in fields.items()
            if name not in ("epoch", "step")
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < LARGEST
        }

    def text(self) -> str:
        """The row as the journal holds it, without its digest."""
        return json.dumps(self.model_dump(exclude_unset=True, mode="json"))


class StepRow(Row):
    """The last taken step since the row before: its loss's terms, scale and rate, and the pace since then."""

    kind: Literal["step"]
    loss: float
    pairs_per_s: Amount | None = None
    seconds: Amount | None = None
    bad_steps: Count = 0  # not taken since the row before


class BadRow(Row):
    """Steps of which none was taken, as their loss was not finite."""

    kind: Literal["bad"]
    bad_steps: Count
    pairs_per_s: Amount | None = None
    seconds: Amount | None = None


class MeasureRow(Row):
    """An evaluation of one set; rates are fractions."""

    kind: Literal["measure"]
    images: str = ""
    top1: float | None = None
    asr: float | None = None
    answers: list[Answer] | None = None
    targets: dict[str, str] | None = None  # of an attack with several: their names by the numbers of their classes
    refused: dict[str, str] | None = None  # measures that say nothing of these embeddings, and why
    seconds: Amount | None = None  # of the whole evaluation of this moment, until this set was done
    costs: dict[str, float] | None = None  # seconds of this set by part
    anew: bool = False  # the set has other pictures or labels than in the rows before, or the twin another attack


def in_words(name: str, targets: Mapping[str, str] | None) -> str:
    """A number's name for people: 'ASR (banana)' for the `asr_of_3` of a row whose `targets` call class 3 so; others as they
    are."""
    found = re.fullmatch(r"asr_of_(\d+)(?:_(\d+))?(_centre)?", name)
    if found is None or found[1] not in (targets or {}):
        return name
    attack = f", attack {found[2]}" if found[2] else ""
    return f"ASR ({(targets or {})[found[1]]}){attack}{', in the centre' if found[3] else ''}"


AnyRow = Annotated[StepRow | BadRow | MeasureRow, Field(discriminator="kind")]
_ANY_ROW: TypeAdapter[StepRow | BadRow | MeasureRow] = TypeAdapter(AnyRow)


def parse_row(line: bytes) -> StepRow | BadRow | MeasureRow | None:
    """The row in a line; None if it holds none."""
    try:
        return _ANY_ROW.validate_json(line)
    except ValidationError:
        return None


class JournalRows(NamedTuple):
    """A journal as read: its rows, and the numbers of the lines, from 1, that are not as they were written."""

    rows: list[StepRow | BadRow | MeasureRow]
    damaged: list[int]


def row_of(kind: str, numbers: dict[str, Any]) -> StepRow | BadRow | MeasureRow:
    """A row to be written."""
    return _ANY_ROW.validate_python({"kind": kind, **numbers})


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file of JSON lines; a last line cut by a kill is left out."""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if line.endswith(b"\n"):
            yield line


def read_journal(path: Path, length: int | None = None, least: int = 0) -> JournalRows:
    """The rows in the first `length` bytes of a journal, or in all of it, which has at `least` so many, and the lines that
    hold none."""
    lines = read_lines(path, length, least)
    rows = [(number, parse_row(text)) for number, text in lines.whole]
    damaged = [*lines.damaged, *(number for number, row in rows if row is None)]
    return JournalRows([row for _, row in rows if row is not None], sorted(damaged))


def read_rows(path: Path, length: int | None = None) -> list[StepRow | BadRow | MeasureRow]:
    """The same rows; Damaged if a line is not as it was written."""
    return whole_rows(path, read_journal(path, length))


def whole_rows(path: Path, journal: JournalRows) -> list[StepRow | BadRow | MeasureRow]:
    """The rows of a journal as read from there; Damaged if a line is not as it was written."""
    if journal.damaged:
        raise damaged(path, f"line {journal.damaged[0]:,} is not as it was written", REMEDY)
    return journal.rows
