"""Blocks of similarities in plain torch: the reference core, and the one that torch.compile makes of it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from objectives.tiles import Block, Core, Sums, wide

NEAR = 60.0  # exponents further than this below a block's largest are taken by themselves


class Kernels(NamedTuple):
    """What works on a block's similarities, which it may overwrite; may be compiled."""

    statistics: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    slope: Callable[..., torch.Tensor]


def similarities(block: Block) -> torch.Tensor:
    """[m, n]: s L R^t, in float32 at least; -inf where ids are equal."""
    left, right, dtype = block.left, block.right, wide(block.left.dtype)
    if left.dtype == torch.bfloat16 and left.is_cuda:
        x = torch.mm(left, right.T, out_dtype=dtype).mul_(block.scale)
    else:
        x = (left.to(dtype) * block.scale) @ right.to(dtype).T
    if block.left_ids is not None and block.right_ids is not None:
        x.masked_fill_(block.left_ids[:, None] == block.right_ids, -torch.inf)
    out: torch.Tensor = x
    return out


def statistics(
    x: torch.Tensor, left_counts: torch.Tensor | None, right_counts: torch.Tensor | None, columns_too: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exps of a block's rows and columns; of the rows twice if the columns' are not wanted."""
    across = _counting(x, right_counts).logsumexp(1)
    return across, _counting(x.T, left_counts).logsumexp(1) if columns_too else across


def slope(  # noqa: PLR0913  (compiled, so all tensors come one by one)
    x: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    on_row: torch.Tensor,
    on_column: torch.Tensor | None,
    left_counts: torch.Tensor | None,
    right_counts: torch.Tensor | None,
) -> torch.Tensor:
    """g exp(x - row) + h exp(x - column) of a block; 0, not 0 times inf, where an entry does not count."""
    other = None
    if on_column is not None:
        other = (_counting(x.T, left_counts).T - column).exp_().mul_(on_column)
    out = _counting(x, right_counts).sub_(row[:, None]).exp_().mul_(on_row[:, None])
    return out if other is None else out.add_(other)


def _counting(x: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """x with -inf in the columns that do not count."""
    return x if counts is None else x.masked_fill(~counts, -torch.inf)


PLAIN = Kernels(statistics, slope)


def _statistics(kernels: Kernels, block: Block, columns_too: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = similarities(block)
    plain = all(mask is None for mask in block[3:])
    if plain and columns_too and x.device.type == "cpu" and (near := _near_statistics(x)) is not None:
        return near
    return kernels.statistics(x, block.left_counts, block.right_counts, columns_too)


def _near_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both log-sum-exps by one exponential, where every row and column comes near enough to the block's largest entry for
    float range; on a GPU, asking that would make the host wait."""
    top = x.amax(1)
    peak = top.max()
    if not (bool(top.min() > peak - NEAR) and bool(x.amax(0).min() > peak - NEAR)):
        return None
    e = x.sub_(peak).exp_()
    return e.sum(1).log_().add_(peak), e.sum(0).log_().add_(peak)


def _slope(kernels: Kernels, block: Block, sums: Sums) -> torch.Tensor:
    x = similarities(block)
    g = _near_slope(x, block, sums) if sums.on_column is not None and x.device.type == "cpu" else None
    if g is None:
        g = kernels.slope(x, *sums[:4], block.left_counts, block.right_counts)
    if sums.on_own is not None:
        own = g.diagonal(sums.shift)
        own += sums.on_own[max(0, -sums.shift) :][: len(own)]
    return g


def _near_slope(x: torch.Tensor, block: Block, sums: Sums) -> torch.Tensor | None:
    """The slope by one exponential, in x's memory, where all log-sum-exps and entries are near each other."""
    assert sums.on_column is not None
    middle = (sums.row.mean() + sums.column.mean()) / 2
    u, v = middle - sums.row, middle - sums.column
    if not (bool(torch.maximum(u.abs().max(), v.abs().max()) < NEAR / 2) and bool(x.amax() - middle < NEAR / 2)):
        return None
    above, beside = (sums.on_row * u.exp())[:, None], sums.on_column * v.exp()
    if block.right_counts is not None:
        above = above * block.right_counts
    if block.left_counts is not None:
        beside = beside * block.left_counts[:, None]
    x.sub_(middle).exp_()
    # some rows at a time, so that their weights take an eighth of x's memory
    parts = (torch.split(values, 128) for values in (x, above, beside.expand_as(x)))
    for some, of_rows, of_columns in zip(*parts, strict=True):
        some.mul_(of_rows + of_columns)
    return x


def _sigmoid(block: Block, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert block.left_ids is not None
    assert block.right_ids is not None
    x = similarities(block._replace(left_ids=None)).add_(bias)
    own = block.left_ids[:, None] == block.right_ids
    x = torch.where(own, -x, x)
    total = torch.nn.functional.softplus(x).sum()
    g = x.sigmoid_()
    g = torch.where(own, -g, g)
    return total, g.sum(), g


def core(name: str, kernels: Kernels) -> Core:
    """The core of that name whose blocks these kernels compute."""
    return Core(name, partial(_statistics, kernels), partial(_slope, kernels), _sigmoid)


TORCH = core("torch", PLAIN)


def compiled(**options: Any) -> Core:
    """The core `torch.compile`: for any shape, so that a new one compiles nothing anew."""
    kinds: list[Any] = [torch.compile(kernel, dynamic=True, **options) for kernel in PLAIN]
    return core("torch.compile", Kernels(*kinds))
