"""Captions as they are stored, the names in them, and the templates that new ones are made of."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.decode import DecodeError, caption
from data.refusal import Missing, UserError
from data.shards import Index
from data.store import Range, Reader

AT_ONCE = 4096  # captions read together


def stored_captions(index: Index, samples: np.ndarray, field: str) -> Iterator[str | None]:
    """The captions of these samples (int64 [n]) in order, from the .txt or from a field of the .json ("json.FIELD"); None
    for what can't be used."""
    reader = Reader()
    try:
        for begin in range(0, len(samples), AT_ONCE):
            part = [int(sample) for sample in samples[begin : begin + AT_ONCE]]
            ranges: list[Range] = [(path, place[2], place[3]) for path, place in index.places(part)]
            for body in reader.read(ranges):
                try:
                    yield caption(body, field)
                except DecodeError:
                    yield None
    finally:
        reader.close()


def word_of(name: str) -> re.Pattern[str]:
    """Finds a name as a word of a caption, whatever its letters' case."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def read_templates(path: str | Path) -> list[str]:
    """The lines of a template file; UserError if it is missing, empty or a line lacks {c}."""
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise Missing(
            f"templates {path}: {error.strerror}; give 'imagenet' or a text file with {{c}} in each line"
        ) from None
    wrong = [line for line in lines if "{c}" not in line]
    if wrong or not lines:
        raise UserError(f"templates {path}: {f'the line {wrong[0]!r} lacks {{c}}' if wrong else 'the file is empty'}")
    return lines
