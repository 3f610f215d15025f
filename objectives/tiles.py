"""The pairwise-loss core: statistics of a tile of similarities that is never kept.

A tile is s L R^t for left rows L [m, D] and right rows R [n, D]. It is computed in blocks; each block gives its part of the
row *and* the column statistics and is thrown away; the backward pass computes it again. Memory is O((m + n) D), products
are 4 m n D against 6 m n D of the two one-sided cross-entropies that keep their logits. Log-sum-exps are of each block's
own rows and columns, so nothing overflows at s = 100. Gradients are analytic: with p_ij = exp(x_ij - row_i) and
q_ij = exp(x_ij - column_j) for x = s L R^t,

    d/dx_ij = g_i p_ij + h_j q_ij + w_i [j is i's own]

for gradients g, h, w of the row and column log-sum-exps and of the own entries. The own entries belong to the tile because
p nears 1 where -w does: only their difference may be rounded. A `Core` computes blocks: torch (objectives/blocks.py) or
Triton (objectives/triton_blocks.py). Rows may be bfloat16: sums are of float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

BLOCK = 1024  # rows and columns of a block: 4 MB of float32, which stays in cache; larger on a GPU
WIDE = 8192


class Own(NamedTuple):
    """Where this rank's own pairs stand: rows left + k and right + k of the tile's two sides belong together, k < rows."""

    left: int
    right: int
    rows: int


class Layout(NamedTuple):
    """What is left out of a tile's sums: entries whose ids are equal, and rows that do not count, on either side; and which
    entries are this rank's own pairs."""

    left_ids: torch.Tensor | None = None  # int64 [m]
    right_ids: torch.Tensor | None = None  # int64 [n]
    left_counts: torch.Tensor | None = None  # bool [m]
    right_counts: torch.Tensor | None = None  # bool [n]
    own: Own | None = None


WHOLE = Layout()


class Block(NamedTuple):
    """Some rows and columns of a tile."""

    left: torch.Tensor  # [m, D]
    right: torch.Tensor  # [n, D]
    scale: torch.Tensor  # 0-d
    left_ids: torch.Tensor | None = None
    right_ids: torch.Tensor | None = None
    left_counts: torch.Tensor | None = None
    right_counts: torch.Tensor | None = None


class Sums(NamedTuple):
    """A block's rows' and columns' log-sum-exps over the whole tile (inf where there is none), and the loss's gradients."""

    row: torch.Tensor  # [m]
    column: torch.Tensor  # [n]
    on_row: torch.Tensor  # [m]
    on_column: torch.Tensor | None  # [n]; None if columns are not wanted
    on_own: torch.Tensor | None  # [m], of entry (i, i + shift), 0 where that is no own pair; None if the block has none
    shift: int


class Core(NamedTuple):
    """What computes a tile's blocks; no core keeps anything from block to block."""

    name: str
    statistics: Callable[[Block, bool], tuple[torch.Tensor, torch.Tensor]]  # log-sum-exps of rows and, if wanted, columns
    slope: Callable[[Block, Sums], torch.Tensor]  # [m, n]: d/dx
    sigmoid: Callable[[Block, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # (sum, d/dbias, d/dx [m, n])
    dtype: torch.dtype | None = None  # what rows are rounded to before ranks exchange and multiply them; None: as they are


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums over rows of a dtype are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _slices(count: int, device: torch.device) -> Iterator[slice]:
    side = WIDE if device.type == "cuda" else BLOCK
    for first in range(0, count, side):
        yield slice(first, min(count, first + side))


class _Tile(NamedTuple):
    """What every block of a tile is cut from."""

    left: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor
    layout: Layout

    def block(self, rows: slice, columns: slice) -> Block:
        left_ids, right_ids, left_counts, right_counts, _ = self.layout
        sides = ((left_ids, rows), (right_ids, columns), (left_counts, rows), (right_counts, columns))
        cut = [None if values is None else values[at] for values, at in sides]
        return Block(self.left[rows], self.right[columns], self.scale, *cut)

    def pulled(self, slope: Callable[[slice, slice], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(gradient in the left rows, in the right rows, in the scale) from d/dx of every block."""
        left, right, scale, _ = self
        dtype = wide(left.dtype)
        d_left, d_right = torch.empty_like(left), right.new_zeros(right.shape, dtype=dtype)
        on_scale = left.new_zeros((), dtype=dtype)
        for rows in _slices(len(left), left.device):
            stripe = left.new_zeros(left[rows].shape, dtype=dtype)
            for columns in _slices(len(right), left.device):
                g = slope(rows, columns)
                _add_product(stripe, g, right[columns])
                _add_product(d_right[columns], g.T, left[rows])
            on_scale += torch.linalg.vecdot(stripe, left[rows].to(dtype)).sum()
            d_left[rows] = stripe.mul_(scale)
        return d_left, d_right.mul_(scale).to(right.dtype), on_scale.to(scale.dtype)


def _add_product(into: torch.Tensor, slope: torch.Tensor, rows: torch.Tensor) -> None:
    """into += slope rows, summed in the type of `into`."""
    if rows.dtype == torch.bfloat16 and rows.is_cuda:
        into += torch.mm(slope.to(rows.dtype), rows, out_dtype=into.dtype)  # on the tensor cores
    else:
        into.addmm_(slope.to(into.dtype), rows.to(into.dtype))


class _LogSumExps(torch.autograd.Function):
    """(row log-sum-exps [m] over right rows that count, column log-sum-exps [n] over left rows that count, own entries)."""

    @staticmethod
    def forward(  # noqa: PLR0913  (autograd passes all inputs one by one)
        ctx: Any,
        left: torch.Tensor,
        right: torch.Tensor,
        scale: torch.Tensor,
        core: Core,
        layout: Layout,
        columns_too: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tile, dtype, own = _Tile(left, right, scale, layout), wide(left.dtype), layout.own or Own(0, 0, 0)
        row = left.new_full((len(left),), -torch.inf, dtype=dtype)
        column = right.new_full((len(right),), -torch.inf, dtype=dtype)
        for rows in _slices(len(left), left.device):
            for columns in _slices(len(right), left.device):
                across, down = core.statistics(tile.block(rows, columns), columns_too)
                row[rows] = torch.logaddexp(row[rows], across)
                if columns_too:
                    column[columns] = torch.logaddexp(column[columns], down)
        pairs = (left[own.left :][: own.rows].to(dtype), right[own.right :][: own.rows].to(dtype))
        ctx.core, ctx.layout, ctx.columns_too = core, layout, columns_too
        ctx.save_for_backward(left, right, scale, row, column)
        return row, column, scale * torch.linalg.vecdot(*pairs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        left, right, scale, row, column = ctx.saved_tensors
        on_row, on_column, on_own = grads
        # a row without any entry has no probabilities: exp(x - inf) = 0
        row, column = (torch.where(part == -torch.inf, torch.inf, part) for part in (row, column))
        tile, own, spread = _Tile(left, right, scale, ctx.layout), ctx.layout.own, None
        if own is not None:
            spread = torch.zeros_like(row)
            spread[own.left :][: own.rows] = on_own

        def slope(rows: slice, columns: slice) -> torch.Tensor:
            ours = _own_shift(own, rows, columns)
            sums = Sums(
                row[rows], column[columns], on_row[rows], on_column[columns] if ctx.columns_too else None,
                None if spread is None or ours is None else spread[rows], ours or 0,
            )  # fmt: skip
            return ctx.core.slope(tile.block(rows, columns), sums)  # type: ignore[no-any-return]

        return *tile.pulled(slope), None, None, None


def _own_shift(own: Own | None, rows: slice, columns: slice) -> int | None:
    """j - i of a block's own entries (i, j); None if it holds none."""
    if own is None:
        return None
    shift = (own.right - columns.start) - (own.left - rows.start)
    first = max(own.left, rows.start, own.left - own.right + columns.start)
    last = min(own.left + own.rows, rows.stop, own.left - own.right + columns.stop)
    return shift if first < last else None


def log_sum_exps(  # noqa: PLR0913  (three tensors, and how)
    left: torch.Tensor,
    right: torch.Tensor,
    scale: torch.Tensor,
    core: Core,
    layout: Layout = WHOLE,
    columns_too: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log sum_j exp(s l_i . r_j) [m], log sum_i exp(s l_i . r_j) [n], s l . r of this rank's own pairs, none without
    `layout.own`); left [m, D], right [n, D], scale 0-d.

    Without `columns_too` the second is not computed.
    """
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _LogSumExps.apply(left, right, scale, core, layout, columns_too)
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
        core: Core,
        layout: Layout,
    ) -> torch.Tensor:
        tile = _Tile(left, right, scale, layout)
        total, on_bias = left.new_zeros(2, dtype=wide(left.dtype)).unbind()

        def slope(rows: slice, columns: slice) -> torch.Tensor:
            nonlocal total, on_bias
            part, of_bias, g = core.sigmoid(tile.block(rows, columns), bias)
            total, on_bias = total + part, on_bias + of_bias
            return g

        ctx.save_for_backward(*tile.pulled(slope), on_bias.to(bias.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(part * grads[0] for part in ctx.saved_tensors), None, None


def sigmoid_sum(
    left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, core: Core, layout: Layout
) -> torch.Tensor:
    """0-d: sum over the tile of -log sigmoid(z (s l . r + b)), z = 1 where the layout's ids are equal, else -1."""
    out: torch.Tensor = _Sigmoid.apply(left, right, scale, bias, core, layout)
    return out
