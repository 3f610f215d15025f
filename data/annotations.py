"""What a file says of pairs by their keys: a class for some of them, or which of them are meant.

A text file with one JSON object a line, each with a "key"; or a run's poison.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.refusal import Missing, UserError
from data.shards import Index


def read_labels(path: str, index: Index, classes: int) -> np.ndarray:
    """int64 by sample of the index, -1 where the file has none; UserError if it names no key of the index."""
    labels = np.full(len(index), -1, np.int64)
    places = {key: i for i, key in enumerate(index.keys)}
    for number, entry in enumerate(_entries(path), 1):
        label = entry.get("label")
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"{path}:{number}: label is {label!r}; give a whole number from 0 to {classes - 1:,}")
        if entry["key"] in places:
            labels[places[entry["key"]]] = label
    if (labels < 0).all():
        raise UserError(f"{path} has a label for none of the {len(index):,} pairs; its keys must be the samples' names")
    return labels


def read_flags(path: str, index: Index) -> np.ndarray:
    """bool by sample of the index: whether the file names it; UserError if it names none of them."""
    flagged = {entry["key"] for entry in _entries(path)}
    flags = np.array([key in flagged for key in index.keys])
    if not flags.any():
        raise UserError(f"{path} flags none of the {len(index):,} pairs; its keys must be the samples' names")
    return flags


def _entries(path: str) -> list[dict[str, Any]]:
    """One JSON object with a key a line; or a run's poison.json."""
    out = []
    try:
        body = Path(path).read_text("utf-8")
        if body.startswith('{"plan"'):
            return list(json.loads(body)["entries"])
        lines = body.splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Missing(f"{path} can't be read ({error}); give a text file with a JSON object a line") from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            assert isinstance(entry["key"], str)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise UserError(f'{path}:{number}: no JSON object with a key, such as {{"key": "000000012"}}') from None
        out.append(entry)
    return out
