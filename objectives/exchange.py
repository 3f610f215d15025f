"""How ranks share a global batch: a grid of them, each computing one tile of the N x N similarities.

W ranks stand in a grid of R rows and C columns. A rank holds B pairs. Its tile needs the left features of the ranks in its
row of the grid, and the right features of those in its column: 2 (sqrt(W) - 1) blocks instead of 2 (W - 1). The gradient
of a gathered block is summed over the ranks that used it and goes back to its holder, so every function here is the exact
derivative of the sum of all ranks' losses.

A rank keeps the R + C blocks that it received until the backward pass. Fewer at the same traffic is impossible: of W^2
products of two blocks each rank owes W, and with h blocks at hand it can form no more than h^2/4, so it receives about 4 W/h
or more: with two at a time W - 1, as without a grid, where the grid's R + C = 2 sqrt(W) receive as many. At a fixed global
batch a rank's share of memory falls as 1/sqrt(W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from objectives.blocks import TORCH
from objectives.tiles import Core, Layout, Own


class Group(Protocol):
    """Some ranks in a fixed order, and three collectives on plain tensors, without gradients."""

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        ...

    @property
    def size(self) -> int:
        """How many ranks the group has."""
        ...

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """[size * B, ...]: the [B, ...] of all ranks in order."""
        ...

    def reduce_scatter(self, whole: torch.Tensor) -> torch.Tensor:
        """[B, ...]: this rank's part of the sum over ranks of their [size * B, ...]."""
        ...

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of equally shaped tensors."""
        ...


@dataclass(frozen=True)
class SingleRank:
    """The group of one rank."""

    rank: int = 0
    size: int = 1

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """The very rows."""
        return part

    def reduce_scatter(self, whole: torch.Tensor) -> torch.Tensor:
        """The very rows."""
        return whole

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The very value."""
        return value


def grid(ranks: int) -> tuple[int, int]:
    """(rows, columns) of the grid: as square as the number allows, columns >= rows, so that a row is one machine's ranks."""
    rows = max(n for n in range(1, int(ranks**0.5) + 1) if ranks % n == 0)
    return rows, ranks // rows


@dataclass(frozen=True)
class Ranks:
    """This rank's three groups: all; its row of the grid, consecutive ranks; its column, every C-th rank."""

    everyone: Group
    row: Group
    column: Group


SINGLE_RANK = Ranks(SingleRank(), SingleRank(), SingleRank())


class Exchange:
    """What the ranks tell each other in one step; each tensor is gathered once, whoever asks for it. `core` is what computes
    a tile's blocks here."""

    def __init__(self, ranks: Ranks, core: Core = TORCH) -> None:
        self.ranks, self.core = ranks, core
        self._kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def gathered(self, part: torch.Tensor, group: Group) -> torch.Tensor:
        """[size * B, ...]: the group's [B, ...] in order, in the core's type, with gradients."""
        name = (id(part), id(group))
        if name not in self._kept:  # the part is kept with it, so that no other tensor can get its id
            rounded = part if self.core.dtype is None else part.to(self.core.dtype)
            self._kept[name] = (part, rounded if group.size == 1 else _Gather.apply(rounded, group))
        return self._kept[name][1]

    def own(self, rows: int) -> Own:
        """Where this rank's pairs, B = `rows`, stand in its tile of gathered rows and columns."""
        return Own(self.ranks.row.rank * rows, self.ranks.column.rank * rows, rows)

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, with gradients."""
        out: torch.Tensor = value if self.ranks.everyone.size == 1 else _Total.apply(value, self.ranks.everyone)
        return out

    def mean(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """0-d, the same on every rank: the mean of [B] over all N rows, or their weighted mean; 0 if all weights are 0."""
        if weights is None:
            return self.all_reduce_sum(rows.mean()) / self.ranks.everyone.size
        weights = weights.to(rows.dtype)
        return self.all_reduce_sum((rows * weights).sum()) / self.all_reduce_sum(weights.sum()).clamp(min=1e-30)

    def places(self, rows: int, device: torch.device) -> Layout:
        """The ids of this rank's tile are the places of its rows in the global batch, B = `rows` a rank."""
        first = self.ranks.everyone.rank * rows
        own = torch.arange(first, first + rows, device=device)
        return Layout(self.ranks.row.gather(own), self.ranks.column.gather(own))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return group.gather(part)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.reduce_scatter(grads[0]), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return group.all_reduce_sum(value)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.all_reduce_sum(grads[0]), None


class _Merge(torch.autograd.Function):
    """Log-sum-exps [size * B] over each rank's part of the columns -> those over all columns, of this rank's rows [B]."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Group) -> torch.Tensor:
        whole = group.gather(part[None]).logsumexp(0)
        ctx.group = group
        ctx.save_for_backward(part, whole)
        return whole.chunk(group.size)[group.rank].clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        part, whole = ctx.saved_tensors
        share = torch.exp(part - torch.where(whole.isinf(), 0, whole))
        return ctx.group.gather(grads[0]) * share, None


def merged(part: torch.Tensor, group: Group) -> torch.Tensor:
    """[B]: log-sum-exps of this rank's rows over all columns, from the group's [size * B] over each rank's columns."""
    out: torch.Tensor = part if group.size == 1 else _Merge.apply(part, group)
    return out
