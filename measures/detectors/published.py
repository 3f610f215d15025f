"""Neighbourhoods as the code released with arXiv 2502.01385 computes them, for comparison with its numbers.

It compares a pair with its batch alone. Of the query it takes the (k+1)-th distance for the radius, of a neighbour the k-th;
it adds 1e-4 in logarithms, so that a neighbour's distance of 0 to itself counts as ln(1e-4); and the places of neighbours,
counted without the query, are used where the query is counted too, so that each behind it stands for the one before.
Undefined and infinite scores become 1000.
"""

from __future__ import annotations

import torch

from measures.detectors.contract import CannotScore
from measures.detectors.density import Local, lids

EPSILON = 1e-4
UNDEFINED = 1000.0


def batches(pairs: int, batch: int) -> list[slice]:
    """So many pairs in batches of about that size, none of them short."""
    count = max(1, round(pairs / batch))
    edges = [pairs * at // count for at in range(count + 1)]
    return [slice(begin, end) for begin, end in zip(edges, edges[1:], strict=False)]


def check_enough(batch: int, k: int) -> None:
    """CannotScore if a batch of so many pairs is too small."""
    if batch < k + 2:
        raise CannotScore(f"k is {k:,}, but a batch of the published form has {batch:,} pairs; lower k or raise batch")


def local(parts: tuple[torch.Tensor, ...], k: int, inner: bool = True) -> Local:
    """The neighbourhoods of B pictures [B, D] among them, or among them and their captions [B, D]; a picture's own caption
    is none of its neighbours. Radii and LIDs of neighbours only if they are asked for (`inner`). CannotScore if the batch is
    too small."""
    size = len(parts[0])
    check_enough(size, k)
    rows = torch.cat(parts)
    squares = _squares(rows, len(rows) if inner else size)
    pictures = squares[:size].clone() if inner and len(parts) > 1 else squares[:size]
    if len(parts) > 1:
        pictures.diagonal(size).fill_(torch.inf)
    near = pictures.topk(k + 1, largest=False)  # the picture itself left out
    own, others = near.values.double().sqrt(), _shifted(near.indices[:, :k], size)
    if not inner:
        return Local(own, others, None, None, EPSILON)
    table = own if len(parts) == 1 else squares.topk(k, largest=False).values.double().sqrt()
    radii = table[:, k - 1]
    # the first of a neighbour's k distances is 0, to itself
    within = torch.cat([torch.zeros(len(table), 1, dtype=table.dtype), table[:, : k - 1]], 1)
    return Local(own, others, radii, lids(within, radii[:, None], EPSILON), EPSILON)


def _squares(rows: torch.Tensor, queries: int) -> torch.Tensor:
    """[queries, P]: squared distances of the first rows of [P, D] from all, infinite to themselves."""
    moved = rows - rows.mean(0)
    norms = (moved * moved).sum(1)
    out = torch.addmm(norms, moved[:queries], moved.T, alpha=-2).add_(norms[:queries, None]).clamp_(min=0)
    out.fill_diagonal_(torch.inf)
    return out


def _shifted(others: torch.Tensor, size: int) -> torch.Tensor:
    """The places of neighbours as they are counted without the query, and for captions without its caption too."""
    query = torch.arange(size)[:, None]
    captions = (others >= size).long()
    return others - captions - ((others - captions * size) > query).long()


def bounded(scores: torch.Tensor) -> torch.Tensor:
    """The scores with what is undefined or infinite replaced."""
    return torch.nan_to_num(scores, nan=UNDEFINED, posinf=UNDEFINED, neginf=0.0)
