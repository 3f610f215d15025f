"""Neighbours of more points than can be compared with one another: an inverted file of faiss. The one door to faiss.

Points are parted among the cells of a k-means, and each is compared, at 8 bits a number, with those of the nearest cells
alone; distances are then taken from the rows themselves. What this misses is measured: the share of the true k neighbours
that is found, of points that are compared with all.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from measures.detectors.contract import CannotScore, Share
from measures.detectors.points import ROWS, Points
from measures.detectors.search import QUERIES, SPARE, Near, nearest, refined

PROBED = 32  # cells that are looked into
PER_CELL = 64  # points that k-means sees for each cell
JUDGED = 512  # points whose neighbours are found exactly too


def check_installed(rows: int) -> None:
    """CannotScore without faiss, by which so many rows are compared."""
    if find_spec("faiss") is None:
        raise CannotScore(
            f"{rows:,} rows are too many to compare all with all, and faiss is not installed; pip install "
            "'.[neighbours]', or give references, such as 2048"
        )


def table(points: Points, own: range, k: int, share: Share) -> tuple[Near, float]:
    """(the k neighbours of some points, the recall); CannotScore without faiss."""
    check_installed(points.total)
    index = _index(points, share)
    out = Near(torch.empty(len(own), k, dtype=torch.float64), torch.empty(len(own), k, dtype=torch.int32))
    for begin in range(own.start, own.stop, QUERIES):
        share.beat()
        wanted = torch.arange(begin, min(begin + QUERIES, own.stop))
        found = _found(points, index, wanted, k)
        for into, what in zip(out, found, strict=True):
            into[begin - own.start : begin - own.start + len(wanted)] = what
    return out, _recall(points, index, k, share)


def _index(points: Points, share: Share) -> Any:
    """The points in cells, 4 sqrt(U) of them."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    width, cells = points.parts[0].shape[1], int(4 * len(points) ** 0.5)
    index: Any = faiss.index_factory(width, f"IVF{cells},SQ8")
    index.cp.seed, index.cp.niter = 1, 10
    spread = np.linspace(0, len(points) - 1, min(len(points), PER_CELL * cells)).astype(np.int64)
    index.cp.max_points_per_centroid = PER_CELL
    index.train(_numpy(points.take(torch.from_numpy(spread))))
    for begin in range(0, len(points), ROWS):
        share.beat()
        index.add(_numpy(points.block(begin, min(begin + ROWS, len(points)))))
    index.nprobe = min(cells, PROBED)
    return index


def _numpy(rows: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(rows.float().numpy())


def _found(points: Points, index: Any, wanted: torch.Tensor, k: int) -> Near:
    """The k neighbours of some points that the index finds; of one for which it finds too few, the true ones."""
    queries = points.take(wanted)
    _, found = index.search(_numpy(queries), k + 1 + SPARE)
    candidates = torch.from_numpy(found)
    few = ((candidates >= 0) & (candidates != wanted[:, None])).sum(1) < k
    if few.any():
        out = nearest(points, queries, wanted, k)
        if few.all():
            return out
        rest = refined(points, queries[~few], wanted[~few], candidates[~few], k)
        for into, what in zip(out, rest, strict=True):
            into[~few] = what
        return out
    return refined(points, queries, wanted, candidates, k)


def _recall(points: Points, index: Any, k: int, share: Share) -> float:
    """The share of the true k neighbours that is found, of points spread over all."""
    judged = torch.from_numpy(np.linspace(0, len(points) - 1, min(JUDGED, len(points))).astype(np.int64))
    share.beat()
    true = nearest(points, points.take(judged), judged, k).points
    found = _found(points, index, judged, k).points
    hits = (true[:, :, None] == found[:, None, :]).any(2).sum().item()
    return hits / true.numel()
