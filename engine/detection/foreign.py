"""Scores that another program gave to the same pairs."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from data.refusal import UserError
from data.shards import Index, key_hashes
from records.scores import Numbered, read_scores

TOGETHER = 1 << 16  # lines whose keys are looked up at once


def read_foreign(path: Path, index: Index, samples: np.ndarray) -> dict[str, np.ndarray]:
    """float64 [N] by kind, or by the file's name where it tells none: the scores of these samples (int64 [N], sorted), NaN
    where it has none. UserError for a key that no pair of the index has, or that is scored twice, and if no sample has a
    score."""
    order = np.argsort(index.hashes)
    sums = index.hashes[order]
    scores: dict[str, np.ndarray] = {}
    rows = read_scores(path)
    while part := list(islice(rows, TOGETHER)):
        for (number, row), sample in zip(part, _samples(path, part, index, (sums, order)), strict=True):
            into = scores.setdefault(row.kind or path.stem, np.full(len(index), np.nan))
            if not np.isnan(into[sample]):
                raise UserError(f"{path}:{number}: '{row.key}' has a score above; take one out")
            into[sample] = row.score
    out = {kind: known[samples] for kind, known in scores.items()}
    if not any((~np.isnan(known)).any() for known in out.values()):
        raise UserError(f"{path} scores none of the {len(samples):,} pairs; its keys must be the samples' names")
    return out


def _samples(path: Path, part: list[Numbered], index: Index, known: tuple[np.ndarray, np.ndarray]) -> Iterator[int]:
    """The sample of each row; UserError for one that is none."""
    sums, order = known
    wanted = key_hashes([row.key for _, row in part])
    ends = np.searchsorted(sums, wanted), np.searchsorted(sums, wanted, side="right")
    for (number, row), first, last in zip(part, *(end.tolist() for end in ends), strict=True):
        among = np.concatenate([order[low:high] for low, high in zip(first, last, strict=True)])
        sample = next((int(one) for one in among if index.keys[one] == row.key), None)
        if sample is None:
            raise UserError(
                f"{path}:{number}: '{row.key}' is no pair of this data; give the scores of these {len(index):,} pairs, by "
                "their names"
            )
        yield sample
