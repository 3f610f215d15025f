"""Points of which neighbours are sought: rows of one tensor or of several, exact duplicates merged.

A duplicate at distance 0 would make every local density infinite, so equal rows are one point, and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

ROWS = 8192  # rows that are looked at together
MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Points:
    """U different rows out of the M rows of some tensors [m, D], which follow each other."""

    parts: tuple[torch.Tensor, ...]
    kept: torch.Tensor | None  # int64 [U]: the row that each point is; None: all are different
    place: torch.Tensor | None  # int64 [M]: the point of each row; None as before
    _sorted: list[np.ndarray] = field(default_factory=list)  # the sums of the points in order, and whose they are

    def __len__(self) -> int:
        return self.total if self.kept is None else len(self.kept)

    @property
    def total(self) -> int:
        """M."""
        return sum(map(len, self.parts))

    @property
    def merged(self) -> int:
        """How many rows are duplicates of earlier ones."""
        return self.total - len(self)

    def block(self, begin: int, end: int) -> torch.Tensor:
        """[end - begin, D] of consecutive points."""
        if self.kept is None and len(self.parts) == 1:
            return self.parts[0][begin:end]
        return self.take(torch.arange(begin, end))

    def take(self, points: torch.Tensor) -> torch.Tensor:
        """[..., D] of these points, int64 of any shape."""
        return rows_of(self.parts, points if self.kept is None else self.kept[points])

    def of_first(self, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Of a value for each point [U], those of the first rows."""
        return values[:rows] if self.place is None else values[self.place[:rows]]

    def find(self, rows: torch.Tensor) -> torch.Tensor:
        """int64 [n]: the point that each of some rows [n, D] equals; -1: none."""
        if not self._sorted:
            sums = np.concatenate([row_sums(self.block(i, min(i + ROWS, len(self)))) for i in range(0, len(self), ROWS)])
            order = np.argsort(sums)
            self._sorted.extend([sums[order], order])
        sums, order = self._sorted
        wanted = row_sums(rows)
        at = np.minimum(np.searchsorted(sums, wanted), len(sums) - 1)
        found = torch.from_numpy(np.where(sums[at] == wanted, order[at], -1))
        some = found >= 0
        equal = (self.take(found[some]) == rows[some]).all(1)
        found[some] = torch.where(equal, found[some], -1)
        return found


def rows_of(parts: tuple[torch.Tensor, ...], rows: torch.Tensor) -> torch.Tensor:
    """[..., D]: these rows (int64 of any shape) of tensors that follow each other."""
    if len(parts) == 1:
        return parts[0].index_select(0, rows.reshape(-1)).view(*rows.shape, parts[0].shape[1])
    out = parts[0].new_empty((*rows.shape, parts[0].shape[1]))
    first = 0
    for part in parts:
        inside = (rows >= first) & (rows < first + len(part))
        out[inside] = part[rows[inside] - first]
        first += len(part)
    return out


def merged(parts: tuple[torch.Tensor, ...]) -> Points:
    """The points of some rows, each as its first row."""
    sums = np.concatenate([row_sums(part) for part in parts])
    order = np.argsort(sums, kind="stable")  # of equal rows the first comes first
    starts = np.flatnonzero(np.diff(sums[order], prepend=~sums[order[:1]]) != 0)
    if len(starts) == len(sums):
        return Points(parts, None, None)
    first = np.repeat(order[starts], np.diff(starts, append=len(sums)))  # of each row in `order`, the first of its sum
    owner = np.empty(len(sums), np.int64)
    owner[order] = first
    _part_unequal(parts, owner)
    kept, place = np.unique(owner, return_inverse=True)
    return Points(parts, torch.from_numpy(kept), torch.from_numpy(place))


def _part_unequal(parts: tuple[torch.Tensor, ...], owner: np.ndarray) -> None:
    """Makes rows that only share their sum with their owner points of their own."""
    doubles = np.flatnonzero(owner != np.arange(len(owner)))
    for begin in range(0, len(doubles), ROWS):
        rows = doubles[begin : begin + ROWS]
        mine, theirs = rows_of(parts, torch.from_numpy(rows)), rows_of(parts, torch.from_numpy(owner[rows]))
        unequal = rows[(mine != theirs).any(1).numpy()]
        owner[unequal] = unequal


def row_sums(rows: torch.Tensor) -> np.ndarray:
    """uint64 [M]: a sum of each row's bits, the same for equal rows and, but for rare chance, for no others."""
    width = rows.shape[1]
    draw = np.random.Generator(np.random.PCG64(MIX[0]))
    weights = draw.integers(1, 1 << 63, width, dtype=np.uint64) | np.uint64(1)
    out = np.empty(len(rows), np.uint64)
    for begin in range(0, len(rows), ROWS):
        block = (rows[begin : begin + ROWS] + 0.0).contiguous().numpy()  # -0 is 0
        bits = block.view(np.uint32 if block.dtype == np.float32 else np.uint64).astype(np.uint64)
        mixed = (bits + np.uint64(MIX[0])) * np.uint64(MIX[1])
        mixed ^= mixed >> np.uint64(29)
        out[begin : begin + ROWS] = (mixed * weights).sum(1, dtype=np.uint64)
    return out
