"""Which sample stands where in which batch: a pure function of (seed, epoch, position).

The samples of an epoch, shards permuted by the seed, form one line that is cut into `lanes` equal pieces. Within a
lane samples are shuffled in windows; batches take turns over the lanes. Ranks and workers only decide who reads: a
batch lists its samples lane by lane, and rank r of W takes the r-th of W equal slices, so each rank reads a
contiguous run of lanes. The position is one integer, so resuming needs no replay.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.chance import generator


@dataclass(frozen=True)
class Order:
    """The order over samples stored in shards of `counts` samples each; hashable, no arrays inside."""

    counts: tuple[int, ...]
    seed: int
    lanes: int
    window: int

    def __len__(self) -> int:
        return sum(self.counts)

    def steps(self, batch: int) -> int:
        """Whole batches in an epoch; the samples left over are dropped, others in each epoch."""
        return len(self) // batch

    def batch(self, epoch: int, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of the samples of batch `step` (from 0), in canonical order, lane by lane."""
        total, lanes = len(self), min(self.lanes, len(self))
        turns = np.arange(step * size, (step + 1) * size)
        short = total // lanes
        starts = np.arange(lanes + 1) * total // lanes
        longer = np.flatnonzero(np.diff(starts) > short)  # the lanes that hold one sample more than the others
        last = np.maximum(turns - short * lanes, 0)
        lane = np.where(turns < short * lanes, turns % lanes, longer[last] if len(longer) else 0)
        offset = np.where(turns < short * lanes, turns // lanes, short)
        line = np.empty(size, np.int64)
        for i, (a, o) in enumerate(zip(lane.tolist(), offset.tolist(), strict=True)):
            block, place = divmod(o, self.window)
            width = min(self.window, int(starts[a + 1] - starts[a]) - block * self.window)
            line[i] = starts[a] + block * self.window + _shuffled(self.seed, epoch, a, block, width)[place]
        line = line[np.argsort(lane, kind="stable")]
        shards, ends, firsts = _line(self.counts, self.seed, epoch)
        at = np.searchsorted(ends, line, side="right")
        stored: np.ndarray = firsts[shards[at]] + line - (ends[at] - np.asarray(self.counts)[shards[at]])
        return stored


@lru_cache(maxsize=4096)
def _shuffled(seed: int, epoch: int, lane: int, block: int, width: int) -> np.ndarray:
    return generator(seed, "window", epoch, lane, block).permutation(width)


@lru_cache(maxsize=4)
def _line(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(permuted shards, where each ends in the epoch's line, first stored position of each shard)."""
    shards = generator(seed, "shards", epoch).permutation(len(counts))
    sizes = np.asarray(counts)
    return shards, np.cumsum(sizes[shards]), np.concatenate([[0], np.cumsum(sizes)[:-1]])
