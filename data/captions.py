"""Captions as they are stored, the names in them, and the templates that new ones are made of."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.decode import DecodeError, caption
from data.refusal import UserError
from data.shards import Index
from data.store import TOGETHER, Body, Range, Reader, in_parts
from data.texts import read_lines

AT_ONCE = 4096  # captions read together


def stored_captions(index: Index, samples: np.ndarray, field: str) -> Iterator[str | None]:
    """The captions of these samples (int64 [n]) in order, from the .txt or from a field of the .json ("json.FIELD"); None
    for what can't be used."""
    reader = Reader()
    try:
        for begin in range(0, len(samples), AT_ONCE):
            several = [int(sample) for sample in samples[begin : begin + AT_ONCE]]
            ranges: list[Range] = [(path, place[2], place[3]) for path, place in index.places(several)]
            for part in in_parts([size for _, _, size in ranges], TOGETHER):
                bodies = reader.read(ranges[part])
                index.verify(1, several[part], bodies)
                yield from (_used(body, field) for body in bodies)
    finally:
        reader.close()


def _used(body: Body, field: str) -> str | None:
    try:
        return caption(body, field)
    except DecodeError:
        return None


def word_of(name: str) -> re.Pattern[str]:
    """Finds a name as a word of a caption, whatever its letters' case."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def read_templates(path: str | Path) -> list[str]:
    """The lines of a template file that are not blank; UserError if it is missing or empty, a line lacks {c}, or has a brace
    beside it."""
    wants = "give 'imagenet' or a text file with {c} in each line"
    lines = [(number, line) for number, line in enumerate(read_lines(path, "templates", wants), 1) if line]
    for number, line in lines:
        if "{c}" not in line:
            raise UserError(f"templates {path}:{number}: the line {line!r} lacks {{c}}; {wants}")
        if re.search(r"[{}]", line.replace("{c}", "")):
            raise UserError(f"templates {path}:{number}: the line {line!r} has a brace beside {{c}}; take it out")
    return [line for _, line in lines]
