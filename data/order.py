"""Which sample stands where in which batch: a pure function of (seed, epoch, position).

The samples of an epoch, shards permuted by the seed, form one line that is cut into `lanes` equal pieces. Within a
lane samples are shuffled in windows; batches take turns over the lanes. Ranks and workers only decide who reads: a
batch lists its samples lane by lane, and rank r of W takes the r-th of W equal slices, so each rank reads a
contiguous run of lanes. The position is one integer, so resuming needs no replay.

What is near in a shard is read within `window` samples of its lane: with 1,024 of 30 KB, 30 MB of sequential disk are
read in random order, in as many places as there are lanes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from data.seeding import generator

Last = Literal["drop", "wrap"]


@dataclass(frozen=True)
class Order:
    """The order over samples stored in shards of `counts` samples each; hashable, no arrays inside."""

    counts: tuple[int, ...]
    seed: int
    lanes: int
    window: int
    last: Last = "drop"

    def __len__(self) -> int:
        return sum(self.counts)

    def steps(self, batch: int) -> int:
        """Batches in an epoch. The last, partial one is dropped (others are left out in each epoch), or filled with the
        epoch's first samples."""
        return len(self) // batch if self.last == "drop" else -(-len(self) // batch)

    def batch(self, epoch: int, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of the samples of batch `step` (from 0), in canonical order, lane by lane."""
        lane, stored = self.at(epoch, np.arange(step * size, (step + 1) * size) % len(self))
        return stored[np.argsort(lane, kind="stable")]

    def at(self, epoch: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lane, position), int64 [n] each, of the samples that have these turns in an epoch, from 0."""
        total, lanes = len(self), min(self.lanes, len(self))
        short = total // lanes
        starts = np.arange(lanes + 1) * total // lanes
        longer = np.flatnonzero(np.diff(starts) > short)  # the lanes that hold one sample more than the others
        last = np.maximum(turns - short * lanes, 0)
        lane = np.where(turns < short * lanes, turns % lanes, longer[last] if len(longer) else 0)
        offset = np.where(turns < short * lanes, turns // lanes, short)
        block, place = np.divmod(offset, self.window)
        line = starts[lane] + block * self.window
        pieces = np.stack([lane, block], 1)
        for a, b in np.unique(pieces, axis=0).tolist():  # one permutation for all that lie in the same window
            here = (lane == a) & (block == b)
            width = min(self.window, int(starts[a + 1] - starts[a]) - b * self.window)
            line[here] += _shuffled(self.seed, epoch, a, b, width)[place[here]]
        shards, ends, firsts = _line(self.counts, self.seed, epoch)
        at = np.searchsorted(ends, line, side="right")
        stored: np.ndarray = firsts[shards[at]] + line - (ends[at] - np.asarray(self.counts)[shards[at]])
        return lane, stored


@dataclass(frozen=True)
class Mix:
    """Several sources by weight: of every batch, each source gives its share, to within one sample over all batches so
    far, and is passed over at its own pace. An epoch has as many steps as all sources hold batches."""

    orders: tuple[Order, ...]
    weights: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.orders))

    def steps(self, batch: int) -> int:
        """Batches in an epoch."""
        return len(self) // batch

    def batch(self, epoch: int, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of the samples of batch `step`, in canonical order: lane by lane over all sources."""
        number = (epoch - 1) * self.steps(size) + step
        begins, ends = self._given(number * size), self._given((number + 1) * size)
        lanes, samples, first = [], [], 0
        for order, begin, end in zip(self.orders, begins, ends, strict=True):
            turns = np.arange(begin, end)
            for cycle in np.unique(turns // len(order)):
                lane, stored = order.at(int(cycle) + 1, turns[turns // len(order) == cycle] % len(order))
                lanes.append(lane)
                samples.append(stored + first)
            first += len(order)
        out: np.ndarray = np.concatenate(samples)[np.argsort(np.concatenate(lanes), kind="stable")]
        return out

    def _given(self, samples: int) -> list[int]:
        """How many of the first so many samples each source has given."""
        edges = [0]
        for weight in self.weights:
            edges.append(edges[-1] + weight)
        marks = [samples * edge // edges[-1] for edge in edges]
        return [high - low for low, high in zip(marks, marks[1:], strict=False)]


@lru_cache(maxsize=1024)
def _shuffled(seed: int, epoch: int, lane: int, block: int, width: int) -> np.ndarray:
    return generator(seed, "window", epoch, lane, block).permutation(width)


@lru_cache(maxsize=16)
def _line(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(permuted shards, where each ends in the epoch's line, first stored position of each shard)."""
    shards = generator(seed, "shards", epoch).permutation(len(counts))
    sizes = np.asarray(counts)
    return shards, np.cumsum(sizes[shards]), np.concatenate([[0], np.cumsum(sizes)[:-1]])
