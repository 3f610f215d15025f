"""skipped.jsonl: the pairs that a run could not use, a line each, and those of shards that are lost, a line a shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from records.json_file import write_whole
from records.lines import read_lines, seal

FILE = "skipped.jsonl"


class SkippedPair(BaseModel):
    """A pair by its key, and why it can't be used."""

    model_config = ConfigDict(frozen=True)
    key: str
    shard: str
    cause: str


class LostPairs(BaseModel):
    """About so many pairs of a shard, whose keys nobody can read."""

    model_config = ConfigDict(frozen=True)
    shard: str
    cause: Literal["lost"] = "lost"
    pairs: Annotated[int, Field(ge=0, le=10**15)]
    why: str


Skipped = SkippedPair | LostPairs
_SKIPPED: TypeAdapter[SkippedPair | LostPairs] = TypeAdapter(Skipped)


def read_skipped(path: Path) -> tuple[list[Skipped], list[int]]:
    """(What a file lists, the numbers of its lines, from 1, that are not as they were written)."""
    lines = read_lines(path)
    listed, damaged = [], list(lines.damaged)
    for number, text in lines.whole:
        try:
            listed.append(_SKIPPED.validate_json(text))
        except ValidationError:
            damaged.append(number)
    return listed, sorted(damaged)


def add_skipped(path: Path, entries: Sequence[Skipped]) -> None:
    """Adds lines; after a last line that a kill has cut short the file is written anew without it."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        write_skipped(path, read_skipped(path)[0])
    last = read_lines(path).last
    with path.open("a", encoding="utf-8") as file:
        for entry in entries:
            line, last = seal(entry.model_dump_json(), last)
            file.write(line)


def write_skipped(path: Path, entries: Sequence[Skipped]) -> None:
    """Writes the file anew, whole or not at all."""
    last, text = "", ""
    for entry in entries:
        line, last = seal(entry.model_dump_json(), last)
        text += line
    write_whole(path, text.encode())
