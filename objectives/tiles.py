"""The pairwise-loss core: statistics of a tile of similarities that is never kept.

A tile is s L R^t for left rows L [m, D] and right rows R [n, D]. It is computed in blocks; each block gives its part of the
row *and* the column statistics and is thrown away; the backward pass computes it again. Memory is O((m + n) D), products
are 4 m n D against 6 m n D of the two one-sided cross-entropies that keep their logits. Log-sum-exps are of each block's
own rows and columns, so nothing overflows at s = 100. Gradients are analytic: with p_ij = exp(x_ij - row_i) and
q_ij = exp(x_ij - column_j) for x = s L R^t,

    d/dx_ij = g_i p_ij + h_j q_ij

for gradients g, h of the row and column log-sum-exps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

BLOCK = 1024  # rows and columns of a block: 4 MB of float32, which stays in cache; larger on a GPU
WIDE = 8192
NEAR = 60.0  # exponents further than this below a block's largest are taken by themselves


def _blocks(m: int, n: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    side = WIDE if device.type == "cuda" else BLOCK
    for top in range(0, m, side):
        for left in range(0, n, side):
            yield slice(top, min(m, top + side)), slice(left, min(n, left + side))


def statistics(
    x: torch.Tensor, left_counts: torch.Tensor | None, right_counts: torch.Tensor | None, columns_too: bool, plain: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exps of a block's rows and columns.

    On a CPU one exponential serves both where every row and column comes near enough to the block's largest entry for
    float range; else, and on a GPU, where asking would make the host wait, each gets its own.
    """
    if plain and columns_too and x.device.type == "cpu":
        top = x.amax(1)
        peak = top.max()
        if bool(top.min() > peak - NEAR) and bool(x.amax(0).min() > peak - NEAR):
            e = x.sub_(peak).exp_()
            return e.sum(1).log_().add_(peak), e.sum(0).log_().add_(peak)
    across = (x if right_counts is None else x.masked_fill(~right_counts, -torch.inf)).logsumexp(1)
    down = across
    if columns_too:
        down = (x if left_counts is None else x.masked_fill(~left_counts[:, None], -torch.inf)).logsumexp(0)
    return across, down


def slope(
    x: torch.Tensor, row: torch.Tensor, column: torch.Tensor, above: torch.Tensor, beside: torch.Tensor | None
) -> torch.Tensor:
    """g exp(x - row) + h exp(x - column) of a block, in its own memory."""
    if beside is None:
        return x.sub_(row[:, None]).exp_().mul_(above)
    if x.device.type == "cpu":
        middle = (row.mean() + column.mean()) / 2
        u, v = middle - row, middle - column
        if bool(torch.maximum(u.abs().max(), v.abs().max()) < NEAR / 2) and bool(x.amax() - middle < NEAR / 2):
            weight = above * u.exp()[:, None] + beside * v.exp()
            return x.sub_(middle).exp_().mul_(weight)
    other = (x - column).exp_().mul_(beside)
    return x.sub_(row[:, None]).exp_().mul_(above).add_(other)


class Kernels(NamedTuple):
    """What works on a block; plain torch is the reference."""

    statistics: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    slope: Callable[..., torch.Tensor]


PLAIN = Kernels(statistics, slope)


class KernelChoice(NamedTuple):
    """Kernels by their name."""

    name: str
    kernels: Kernels


def fastest(device: torch.device, candidates: dict[str, Kernels], side: int = 4096) -> KernelChoice:
    """The fastest on this device of plain torch and those candidates that give its numbers.

    A candidate that fails, or is off by more than 1e-4 of the largest entry on a block with masks or without, is left out.
    """
    draw = torch.Generator().manual_seed(0)
    x = (20 * torch.randn(side, side + 3, generator=draw)).to(device)
    rows, columns = (torch.rand(n, generator=draw).to(device) < 0.9 for n in x.shape)
    row, column = x.logsumexp(1), x.logsumexp(0)
    h, g = torch.ones_like(column)[None], torch.ones_like(row)[:, None]

    def run(of: Kernels) -> list[torch.Tensor]:
        out = [*of.statistics(x.clone(), rows, columns, True, False), *of.statistics(x.clone(), None, None, True, True)]
        return [*out, of.slope(x.clone(), row, column, g, h), of.slope(x.clone(), row, column, g, None)]

    def seconds(of: Kernels) -> float:
        began = time.perf_counter()
        for _ in range(3):
            run(of)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    want, choices, times = run(PLAIN), {"torch": PLAIN}, {"torch": seconds(PLAIN)}
    for name, candidate in candidates.items():
        try:
            pairs = list(zip(run(candidate), want, strict=True))
            if all(torch.allclose(a, b, atol=1e-4 * float(b.abs().max()), rtol=0) for a, b in pairs):
                choices[name], times[name] = candidate, seconds(candidate)
        except Exception:  # a compiler that is missing or fails, each with its own exception; plain torch remains
            continue
    best = min(times, key=times.__getitem__)
    return KernelChoice(best, choices[best])


class Masks(NamedTuple):
    """What is left out of a tile's sums: entries whose ids are equal, and rows that do not count, on either side."""

    left_ids: torch.Tensor | None = None  # int64 [m]
    right_ids: torch.Tensor | None = None  # int64 [n]
    left_counts: torch.Tensor | None = None  # bool [m]
    right_counts: torch.Tensor | None = None  # bool [n]

    def counting(self, rows: slice, columns: slice) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(which rows, which columns of a block count); None for all."""
        left, right = self.left_counts, self.right_counts
        return None if left is None else left[rows], None if right is None else right[columns]


NO_MASKS = Masks()


def _logits(
    left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, masks: Masks, at: tuple[slice, slice]
) -> torch.Tensor:
    """A block of s L R^t; -inf where ids are equal."""
    rows, columns = at
    x = (left[rows] * scale) @ right[columns].T
    if masks.left_ids is not None and masks.right_ids is not None:
        x.masked_fill_(masks.left_ids[rows, None] == masks.right_ids[None, columns], -torch.inf)
    return x


class _LogSumExps(torch.autograd.Function):
    """(row log-sum-exps [m] over right rows that count, column log-sum-exps [n] over left rows that count)."""

    @staticmethod
    def forward(  # noqa: PLR0913  (autograd passes all inputs one by one)
        ctx: Any,
        left: torch.Tensor,
        right: torch.Tensor,
        scale: torch.Tensor,
        masks: Masks,
        columns_too: bool,
        kernels: Kernels,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        row = left.new_full((len(left),), -torch.inf)
        column = right.new_full((len(right),), -torch.inf)
        plain = all(mask is None for mask in masks)
        for rows, columns in _blocks(len(left), len(right), left.device):
            x = _logits(left, right, scale, masks, (rows, columns))
            across, down = kernels.statistics(x, *masks.counting(rows, columns), columns_too, plain)
            row[rows] = torch.logaddexp(row[rows], across)
            if columns_too:
                column[columns] = torch.logaddexp(column[columns], down)
        ctx.masks, ctx.columns_too, ctx.kernels = masks, columns_too, kernels
        ctx.save_for_backward(left, right, scale, row, column)
        return row, column

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        left, right, scale, row, column = ctx.saved_tensors
        on_rows, on_columns = grads
        row, column = (torch.where(part.isinf(), 0, part) for part in (row, column))
        d_left, d_right = torch.zeros_like(left), torch.zeros_like(right)
        for rows, columns in _blocks(len(left), len(right), left.device):
            x = _logits(left, right, scale, ctx.masks, (rows, columns))
            left_counts, right_counts = ctx.masks.counting(rows, columns)
            above = on_rows[rows, None] if right_counts is None else on_rows[rows, None] * right_counts
            beside = None
            if ctx.columns_too:
                beside = (
                    on_columns[None, columns] if left_counts is None else on_columns[None, columns] * left_counts[:, None]
                )
            g = ctx.kernels.slope(x, row[rows], column[columns], above, beside)
            d_left[rows].addmm_(g, right[columns])
            d_right[columns].addmm_(g.T, left[rows])
        on_scale = torch.linalg.vecdot(d_left, left).sum().to(scale.dtype)
        return d_left.mul_(scale), d_right.mul_(scale), on_scale, None, None, None


def log_sum_exps(
    left: torch.Tensor,
    right: torch.Tensor,
    scale: torch.Tensor,
    masks: Masks = NO_MASKS,
    columns_too: bool = True,
    kernels: Kernels = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log sum_j exp(s l_i . r_j) [m], log sum_i exp(s l_i . r_j) [n]); left [m, D], right [n, D], scale 0-d.

    Without `columns_too` the second is not computed.
    """
    out: tuple[torch.Tensor, torch.Tensor] = _LogSumExps.apply(left, right, scale, masks, columns_too, kernels)
    return out


class _Sigmoid(torch.autograd.Function):
    """sum_ij -log sigmoid(z_ij (s l_i . r_j + b)), z = 1 where ids are equal, else -1; its gradient comes with it."""

    @staticmethod
    def forward(  # noqa: PLR0913  (autograd passes all inputs one by one)
        ctx: Any,
        left: torch.Tensor,
        right: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        left_ids: torch.Tensor,
        right_ids: torch.Tensor,
    ) -> torch.Tensor:
        d_left, d_right = torch.zeros_like(left), torch.zeros_like(right)
        total, on_bias = left.new_zeros(()), left.new_zeros(())
        for at in _blocks(len(left), len(right), left.device):
            rows, columns = at
            x = _logits(left, right, scale, NO_MASKS, at).add_(bias)
            own = left_ids[rows, None] == right_ids[None, columns]
            x = torch.where(own, -x, x)
            total += torch.nn.functional.softplus(x).sum()
            g = x.sigmoid_()
            g = torch.where(own, -g, g)
            on_bias += g.sum()
            d_left[rows].addmm_(g, right[columns])
            d_right[columns].addmm_(g.T, left[rows])
        on_scale = torch.linalg.vecdot(d_left, left).sum().to(scale.dtype)
        ctx.save_for_backward(d_left.mul_(scale), d_right.mul_(scale), on_scale, on_bias.to(bias.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_left, d_right, on_scale, on_bias = ctx.saved_tensors
        return d_left * grads[0], d_right * grads[0], on_scale * grads[0], on_bias * grads[0], None, None


def sigmoid_sum(
    left: torch.Tensor,
    right: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    left_ids: torch.Tensor,
    right_ids: torch.Tensor,
) -> torch.Tensor:
    """0-d: sum over the tile of -log sigmoid(z (s l . r + b)), z = 1 where ids are equal, else -1."""
    out: torch.Tensor = _Sigmoid.apply(left, right, scale, bias, left_ids, right_ids)
    return out
