"""Labelled pictures in place of pairs, for objectives that learn from labels: no captions, no poison.

Labelled (what a folder holds) -> put in the order of their keys' hashes, since folders and many tars lie class by class
  -> Index, as of one shard -> batches as of pairs
"""

from hashlib import blake2b

import numpy as np

from data.archive import Keys
from data.decode import centred, whole
from data.labelled import Labelled
from data.pipeline import Pairs, Reading, Stored, Tokenize
from data.refusal import UserError
from data.seeding import numbers, ranks, smallest_k
from data.shards import Index
from data.sources import Data
from data.store import Reader


class LabelledPairs(Pairs):
    """Pairs without captions; `labels` is int64 [N], by sample of the index."""

    def __init__(self, folder: str, labelled: Labelled, data: Data, reading: Reading, tokenize: Tokenize) -> None:
        """UserError if two pictures have one key, or there are fewer than a batch or data.clean.pairs."""
        keys = Keys.of(key for _, key, _, _ in labelled.where)
        order = np.argsort(numbers(keys.parts()), kind="stable")
        self.where = [labelled.where[i] for i in order]
        self.labels = np.asarray(labelled.labels, np.int64)[order]
        index = _index(folder, self.where, self.labels)
        super().__init__(index, _drawn(index, folder, data.clean.pairs, reading.seed), data, reading, tokenize, None)

    def first(self, sample: int, body: Stored | None = None) -> tuple[np.ndarray, str]:
        """The first view of a sample, uint8 [3, H, W], and an empty caption; DecodeError if it can't be decoded."""
        picture, _ = body or self._bodies([sample], self.spare)[0]
        size, mode = self.reading.size, self.reading.mode
        return centred(whole(picture, size, mode), size, mode), ""

    def _bodies(self, samples: list[int], reader: Reader | None = None) -> list[Stored]:
        places = [self.where[sample] for sample in samples]
        bodies = (reader or self.reader).read([(path, offset, size) for path, _, offset, size in places])
        return [(body, b"") for body in bodies]


def _index(folder: str, where: list[tuple[str, str, int, int]], labels: np.ndarray) -> Index:
    """The index of pictures in this order; a folder of a million files counts as one shard."""
    keys = Keys.of(key for _, key, _, _ in where)
    hashes = numbers(keys.parts())
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(same):
        first, second = (where[same[0] + i] for i in (0, 1))
        raise UserError(
            f"data.clean.labelled = {folder} holds two pictures named {first[1]} ({first[0]}, {second[0]}); rename one, "
            "since draws go by name"
        )
    places = np.array([[offset, size, 0, 0] for _, _, offset, size in where], np.int64)
    digest = blake2b(keys.body.tobytes() + keys.ends.tobytes() + places.tobytes() + labels.tobytes(), digest_size=16)
    return Index((folder,), np.array([len(where)]), keys, hashes, places, (), (), digest.hexdigest(), (0,))


def _drawn(index: Index, folder: str, count: int | None, seed: int) -> np.ndarray | None:
    """int64, sorted: `count` of the samples, drawn by hash(seed, key); None for all."""
    if count is None:
        return None
    if count > len(index):
        raise UserError(
            f"data.clean.pairs is {count:,}, but data.clean.labelled = {folder} holds {len(index):,} pictures; lower it"
        )
    return np.sort(smallest_k(ranks(seed, "clean", index.hashes), count))
