"""Pools of embeddings that an objective remembers: the last that it has seen, first in, first out, without gradient."""

from __future__ import annotations

import torch


def pushed(pool: torch.Tensor, seen: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The pool [P, D], which has ever got `seen` [1] rows, with these rows [n, D] in place of the oldest."""
    rows = rows[-len(pool) :]
    at = (seen + torch.arange(len(rows), device=pool.device)) % len(pool)
    return pool.index_copy(0, at, rows.to(pool.dtype))


def nearest(rows: torch.Tensor, pool: torch.Tensor, seen: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """[B, D]: for each row [B, D] the pool's row of largest cosine; while the pool is empty, the row of `otherwise`."""
    pool = pool.to(rows.dtype)
    filled = torch.arange(len(pool), device=pool.device) < seen
    best = torch.cat([(part @ pool.T).masked_fill(~filled, -2.0).argmax(1) for part in torch.split(rows, 1024)])
    return torch.where(seen > 0, pool[best], otherwise)
