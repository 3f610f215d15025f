"""What a file says of pairs by their keys: a class for some of them, or which of them are meant.

A text file with one JSON object a line, each with a "key"; or a run's poison.json.
"""

import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data.plan_file import verified
from data.refusal import Missing, UserError
from data.shards import Index
from data.texts import decoded, file_bytes, split_lines


def read_labels(path: str, index: Index, classes: int) -> np.ndarray:
    """int64 by sample of the index, -1 where the file has none; UserError if it names no key of the index, or gives a pair
    two labels."""
    labels = np.full(len(index), -1, np.int64)
    places = {key: i for i, key in enumerate(index.keys)}
    for number, entry in _entries(path):
        label, key = entry.get("label"), entry["key"]
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            raise UserError(f"{path}:{number}: label is {label!r}; give a whole number from 0 to {classes - 1:,}")
        if key in places:
            if labels[places[key]] not in (-1, label):
                raise UserError(
                    f"{path}:{number}: '{key}' is labelled {label}, and {labels[places[key]]} above; take one out"
                )
            labels[places[key]] = label
    if (labels < 0).all():
        raise UserError(f"{path} has a label for none of the {len(index):,} pairs; its keys must be the samples' names")
    return labels


def read_flags(path: str, index: Index) -> np.ndarray:
    """bool by sample of the index: whether the file names it; UserError if it names none of them."""
    flagged = read_keys(path)
    flags = np.array([key in flagged for key in index.keys])
    if not flags.any():
        raise UserError(f"{path} flags none of the {len(index):,} pairs; its keys must be the samples' names")
    return flags


def read_keys(path: str) -> frozenset[str]:
    """The keys that a file names; none of an empty one."""
    return frozenset(entry["key"] for _, entry in _entries(path))


def keys_digest(keys: Iterable[str]) -> str:
    """Hex digest of keys, whatever their order."""
    return blake2b(json.dumps(sorted(keys)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def samples_of(keys: Iterable[str], index: Index, where: str) -> np.ndarray:
    """int64, sorted: the samples that have these keys; UserError, saying `where` the keys stand, if a key is none of the
    index."""
    wanted = frozenset(keys)
    places = {key: sample for sample, key in enumerate(index.keys) if key in wanted}
    if strange := sorted(wanted - places.keys()):
        raise UserError(
            f"{where} names {len(wanted):,} pairs, of which {len(strange):,} are none of the {len(index):,} of "
            f"data.pretrain, such as '{strange[0][:80]}'; give a file that was made from these shards"
        )
    return np.array(sorted(places.values()), np.int64)


def _entries(path: str) -> list[tuple[int, dict[str, Any]]]:
    """JSON objects with a key, each with its line or place: one a line, or the entries of a poison.json."""
    wants = "give a text file with a JSON object a line"
    try:
        text = decoded(file_bytes(path, "annotations", wants), f"annotations {path}")
    except Missing as error:
        raise Missing(f"{path} can't be read ({error.fault}); {wants}") from None
    whole = _parsed(text)
    if isinstance(whole, dict) and isinstance(whole.get("entries"), list):
        rows = verified(whole, Path(path))[1] if "plan" in whole else whole["entries"]
        entries: list[tuple[int, Any]] = list(enumerate(rows, 1))
    else:
        lines = enumerate(split_lines(text), 1)
        entries = [(number, _parsed(line)) for number, line in lines if line.strip()]
    for number, entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise UserError(f'{path}:{number}: no JSON object with a key; give such as {{"key": "000000012"}}')
    return entries


def _parsed(text: str) -> Any:
    """What a text says as JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
