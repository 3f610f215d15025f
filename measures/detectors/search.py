"""The nearest neighbours of points, exact, in blocks, so that memory does not grow with how many are compared.

Candidates come from |x - o|^2 = |x|^2 + |o|^2 - 2 x.o in the rows' own type, about a point amid them; of a few more than are
wanted the distances are then taken from the differences themselves, and the nearest kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from measures.detectors.contract import CannotScore
from measures.detectors.points import ROWS, Points

QUERIES = 1024  # rows whose neighbours are sought together
SPARE = 16  # candidates beyond those wanted: rounding may swap near ones
AT_ONCE = 1 << 20  # numbers that are subtracted at once


class Near(NamedTuple):
    """The k nearest points of some rows, nearest first."""

    distances: torch.Tensor  # float64 [n, k]
    points: torch.Tensor  # int64 [n, k]


def nearest(points: Points, queries: torch.Tensor, own: torch.Tensor, k: int) -> Near:
    """The k nearest points of some rows [n, D], without the point `own` (int64 [n]; -1: none) that a row is itself;
    CannotScore if there are no k others."""
    check_enough(len(points), k)
    count = min(len(points), k + 1 + SPARE)
    centre = points.block(0, min(len(points), ROWS)).mean(0)
    moved = queries - centre
    best = torch.full((len(queries), 0), torch.inf, dtype=queries.dtype)
    found = torch.empty((len(queries), 0), dtype=torch.int64)
    for begin in range(0, len(points), ROWS):
        block = points.block(begin, min(begin + ROWS, len(points))) - centre
        # |x|^2 is the same for all points
        values = torch.addmm((block * block).sum(1), moved, block.T, alpha=-2)
        inside = (own >= begin) & (own < begin + len(block))
        values[inside, own[inside] - begin] = torch.inf
        top = values.topk(min(count, len(block)), largest=False)
        best, found = torch.cat([best, top.values], 1), torch.cat([found, top.indices + begin], 1)
        if best.shape[1] > count:
            best, at = best.topk(count, largest=False)
            found = found.gather(1, at)
    return refined(points, queries, own, found, k)


def refined(points: Points, queries: torch.Tensor, own: torch.Tensor, found: torch.Tensor, k: int) -> Near:
    """The k nearest among the candidates `found` (int64 [n, c], different points; -1: none) of each row, by their
    differences; the own point is none of them. CannotScore if a row has fewer than k."""
    distances = torch.empty(found.shape, dtype=torch.float64)
    rows = max(1, AT_ONCE // (found.shape[1] * queries.shape[1]))
    for begin in range(0, len(queries), rows):
        away = points.take(found[begin : begin + rows].clamp(min=0)).sub_(queries[begin : begin + rows, None])
        distances[begin : begin + rows] = torch.linalg.vector_norm(away, dim=-1)
    distances[(found < 0) | (found == own[:, None])] = torch.inf
    distances, at = distances.sort(dim=1, stable=True)
    if len(queries) and distances.shape[1] < k or bool(distances[:, k - 1].isinf().any()):
        raise CannotScore(f"fewer than {k:,} neighbours of a pair were found; lower k")
    return Near(distances[:, :k].contiguous(), found.gather(1, at)[:, :k].contiguous())


def check_enough(points: int, k: int) -> None:
    """CannotScore if points have no k others."""
    if points <= k:
        raise CannotScore(
            f"k is {k:,}, but there are {points:,} different pairs to compare with, each beside {max(0, points - 1):,} "
            "others; lower k or give more pairs"
        )
