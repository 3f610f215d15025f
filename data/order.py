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
        return self._lane_by_lane(epoch, np.arange(step * size, (step + 1) * size) % len(self))

    def part(self, epoch: int, step: int, size: int) -> np.ndarray:
        """int64 [n]: the same samples; where fewer are left in the epoch, those alone."""
        return self._lane_by_lane(epoch, np.arange(step * size, min((step + 1) * size, len(self))))

    def _lane_by_lane(self, epoch: int, turns: np.ndarray) -> np.ndarray:
        lane, stored = self.at(epoch, turns)
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

    def turns(self, epoch: int, stored: np.ndarray) -> np.ndarray:
        """int64 [n]: the turns, from 0, that the samples at these positions have in an epoch; the inverse of `at`."""
        total, lanes = len(self), min(self.lanes, len(self))
        short = total // lanes
        starts = np.arange(lanes + 1) * total // lanes
        shards, ends, firsts = _line(self.counts, self.seed, epoch)
        sizes = np.asarray(self.counts)
        begins = np.empty(len(sizes), np.int64)
        begins[shards] = ends - sizes[shards]  # where each shard begins in the line
        shard = np.searchsorted(np.cumsum(sizes), stored, side="right")
        line = begins[shard] + stored - firsts[shard]
        lane = np.searchsorted(starts, line, side="right") - 1
        block, place = np.divmod(line - starts[lane], self.window)
        by_window = np.lexsort((block, lane))
        pieces = np.stack([lane, block], 1)[by_window]
        for piece in np.split(by_window, np.flatnonzero((pieces[1:] != pieces[:-1]).any(1)) + 1) if len(stored) else ():
            a, b = int(lane[piece[0]]), int(block[piece[0]])
            width = min(self.window, int(starts[a + 1] - starts[a]) - b * self.window)
            place[piece] = np.argsort(_shuffled(self.seed, epoch, a, b, width))[place[piece]]
        offset = block * self.window + place
        longer = np.flatnonzero(np.diff(starts) > short)
        turns: np.ndarray = np.where(offset < short, offset * lanes + lane, short * lanes + np.searchsorted(longer, lane))
        return turns


class Kept:
    """An order less some of its samples: the others come in the sequence in which it has them, closed up. Positions are
    among those others."""

    def __init__(self, order: Order, out: np.ndarray) -> None:
        self.order, self.out = order, out  # int64 [n], sorted: positions of those that are left out
        self._next = np.append(out, -1)
        self._skipped: dict[int, np.ndarray] = {}
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.order) - len(self.out)

    def steps(self, batch: int) -> int:
        """Batches in an epoch, as those of an order of so many samples."""
        return len(self) // batch if self.order.last == "drop" else -(-len(self) // batch)

    def batch(self, epoch: int, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of the samples of batch `step`, as the batches of the whole order show them one after the
        other."""
        wanted = np.arange(step * size, (step + 1) * size) % len(self)
        ends = self._ends(epoch, size)
        parts = np.searchsorted(ends, wanted, side="right")
        out = np.empty(size, np.int64)
        for part in np.unique(parts).tolist():
            whole = self.order.part(epoch, part, size)
            kept = whole[~self._is_out(whole)]
            here = parts == part
            out[here] = kept[wanted[here] - (ends[part] - len(kept))]
        return self._closed_up(out)

    def at(self, epoch: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lane, position), int64 [n] each, of the samples that have these turns among those that are kept."""
        skipped = self._turns(epoch)
        lane, stored = self.order.at(epoch, turns + np.searchsorted(skipped - np.arange(len(skipped)), turns, side="right"))
        return lane, self._closed_up(stored)

    def _ends(self, epoch: int, size: int) -> np.ndarray:
        """int64 [n]: how many are kept up to the end of each batch of the whole order; those of one epoch are remembered."""
        if (epoch, size) not in self._kept:
            many = -(-len(self.order) // size)
            left = np.full(many, size) - np.bincount(self._turns(epoch) // size, minlength=many)
            left[-1] -= many * size - len(self.order)
            self._kept = {(epoch, size): np.cumsum(left)}
        return self._kept[epoch, size]

    def _is_out(self, stored: np.ndarray) -> np.ndarray:
        """bool [n]: whether these are left out."""
        is_out: np.ndarray = self._next[np.searchsorted(self.out, stored)] == stored
        return is_out

    def _turns(self, epoch: int) -> np.ndarray:
        """int64 [n], sorted: the turns of an epoch that are skipped; those of two epochs are remembered."""
        if epoch not in self._skipped:
            newest = list(self._skipped.items())[-1:]
            self._skipped = dict([*newest, (epoch, np.sort(self.order.turns(epoch, self.out)))])
        return self._skipped[epoch]

    def _closed_up(self, stored: np.ndarray) -> np.ndarray:
        closed: np.ndarray = stored - np.searchsorted(self.out, stored)
        return closed


@dataclass(frozen=True)
class Mix:
    """Several sources by weight: of every batch, each source gives its share, to within one sample over all batches so
    far, and is passed over at its own pace. An epoch has as many steps as all sources hold batches."""

    orders: tuple[Order | Kept, ...]
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
