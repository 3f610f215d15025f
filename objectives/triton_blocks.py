# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Blocks of similarities by Triton kernels: product, masks, log-sum-exps or slope in one pass, the product never in memory.

A program computes ROWS x COLUMNS similarities, D in steps, and reduces them where they are. Forward: each leaves partial
log-sum-exps of its rows and of its columns, which are merged afterwards, so nothing is added atomically and two runs give
the same bits. Backward: each writes its part of d/dx, in the rows' own type; the two products with it are the library's, as
accumulators of 64 x D float32 for D = 512 or 1,024 would not fit into registers beside a block. bfloat16 rows are multiplied
as they are and summed in float32; float32 rows as `precision` says: `ieee`, or `tf32x3`, by three products in TF32, which
come near float32. To be imported only where it is used; with TRITON_INTERPRET=1 in the environment before Triton is
imported, kernels run on the CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl

from objectives.tiles import Block, Core, Sums

T = TypeVar("T", bound=tuple[Any, ...])
INTERPRETED = triton.knobs.runtime.interpret
LOG2E = tl.constexpr(1.4426950408889634)  # exponentials and logarithms are to base 2
LN2 = tl.constexpr(0.6931471805599453)
GROUP = tl.constexpr(8)  # block rows that neighbouring programs share, so that what they load stays in the second cache


class Shape(NamedTuple):
    """How a kernel is launched: a program's rows and columns, the step through D, warps, loads in flight."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int


class Shapes(NamedTuple):
    """How each kernel is launched."""

    statistics: Shape
    slope: Shape
    sigmoid: Shape


# On an H100 no register is spilled (tests/test_tiles.py compiles them for one), and two or three programs share a processor
# where 8 steps through D = 512 in bfloat16 take no longer than the exponentials after them, so that one's hide the other's.
NARROW = Shapes(Shape(128, 128, 64, 8, 3), Shape(64, 128, 64, 4, 3), Shape(64, 64, 64, 4, 3))  # bfloat16 rows
TF32 = Shapes(Shape(128, 128, 32, 8, 3), Shape(128, 128, 32, 8, 3), Shape(64, 64, 32, 4, 3))
EXACT = Shapes(*[Shape(64, 64, 32, 4, 3)] * 3)  # float32 rows without tensor cores


class How(NamedTuple):
    """Of float32 products: `ieee` or `tf32x3`; the kernels' shapes, by default what suits the rows."""

    precision: str
    shapes: Shapes | None


@triton.jit
def _place(m, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(this program's block row, its block column, its rows, its columns)."""
    across, down = tl.cdiv(n, COLUMNS), tl.cdiv(m, ROWS)
    program = tl.program_id(0)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    within = program % (GROUP * across)
    i, j = first + within % height, within // height
    return i, j, i * ROWS + tl.arange(0, ROWS), j * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _similarities(  # noqa: PLR0913  (a kernel takes everything one by one)
    left, right, scale, left_ids, right_ids, r, c, m, n, left_stride, right_stride,
    D: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS]: s L R^t to base 2; -inf where ids are equal. What lies beyond the edge repeats the last row."""
    r, c = tl.minimum(r, m - 1), tl.minimum(c, n - 1)
    x = tl.full((r.shape[0], c.shape[0]), 0.0, tl.float32)
    for at in range(0, D, STEP):
        d = at + tl.arange(0, STEP)
        a_at, b_at = left + r[:, None] * left_stride + d[None, :], right + c[None, :] * right_stride + d[:, None]
        if D % STEP == 0:
            a, b = tl.load(a_at), tl.load(b_at)
        else:
            a, b = tl.load(a_at, mask=d[None, :] < D, other=0.0), tl.load(b_at, mask=d[:, None] < D, other=0.0)
        if WIDEN:  # the interpreter multiplies bfloat16 as integers (triton 3.9)
            a, b = a.to(tl.float32), b.to(tl.float32)
        x = tl.dot(a, b, x, input_precision=PRECISION)
    x = x * (tl.load(scale).to(tl.float32) * LOG2E)
    if left_ids is not None:
        x = tl.where(tl.load(left_ids + r)[:, None] == tl.load(right_ids + c)[None, :], float("-inf"), x)
    return x


@triton.jit
def _log_sum_exp(x, AXIS: tl.constexpr):
    """Natural logarithm of the sum of 2^x along an axis; -inf of nothing."""
    top = tl.max(x, AXIS)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(x - tl.expand_dims(top, AXIS)), AXIS)
    return tl.where(total > 0, (top + tl.log2(tl.where(total > 0, total, 1.0))) * LN2, float("-inf"))


@triton.jit
def _statistics_kernel(  # noqa: PLR0913  (a kernel takes everything one by one)
    left, right, scale, left_ids, right_ids, left_counts, right_counts, rows_out, columns_out, m, n,
    left_stride, right_stride, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    i, j, r, c = _place(m, n, ROWS, COLUMNS)
    x = _similarities(
        left, right, scale, left_ids, right_ids, r, c, m, n, left_stride, right_stride, D, STEP, PRECISION, WIDEN
    )  # fmt: skip
    counts = c < n
    if right_counts is not None:
        counts = counts & (tl.load(right_counts + c, mask=c < n, other=0) != 0)
    tl.store(rows_out + j * m + r, _log_sum_exp(tl.where(counts[None, :], x, float("-inf")), 1), mask=r < m)
    if columns_out is not None:
        counts = r < m
        if left_counts is not None:
            counts = counts & (tl.load(left_counts + r, mask=r < m, other=0) != 0)
        tl.store(columns_out + i * n + c, _log_sum_exp(tl.where(counts[:, None], x, float("-inf")), 0), mask=c < n)


@triton.jit(do_not_specialize=["shift"])  # compiled once, wherever the own pairs stand
def _slope_kernel(  # noqa: PLR0913  (a kernel takes everything one by one)
    left, right, scale, left_ids, right_ids, left_counts, right_counts, row, column, on_row, on_column, on_own, shift, slope,
    m, n, left_stride, right_stride, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    _, _, r, c = _place(m, n, ROWS, COLUMNS)
    x = _similarities(
        left, right, scale, left_ids, right_ids, r, c, m, n, left_stride, right_stride, D, STEP, PRECISION, WIDEN
    )  # fmt: skip
    in_rows, in_columns = r < m, c < n
    p = tl.exp2(x - tl.load(row + r, mask=in_rows, other=0.0)[:, None] * LOG2E)
    if right_counts is not None:  # not times 0: an entry that does not count may lie far above the row's sum
        p = tl.where((tl.load(right_counts + c, mask=in_columns, other=0) != 0)[None, :], p, 0.0)
    g = p * tl.load(on_row + r, mask=in_rows, other=0.0)[:, None]
    if on_column is not None:
        p = tl.exp2(x - tl.load(column + c, mask=in_columns, other=0.0)[None, :] * LOG2E)
        if left_counts is not None:
            p = tl.where((tl.load(left_counts + r, mask=in_rows, other=0) != 0)[:, None], p, 0.0)
        g += p * tl.load(on_column + c, mask=in_columns, other=0.0)[None, :]
    if on_own is not None:
        weight = tl.load(on_own + r, mask=in_rows, other=0.0)
        g += tl.where(c[None, :] == r[:, None] + shift, weight[:, None], 0.0)
    at = slope + r[:, None] * n + c[None, :]
    tl.store(at, g.to(slope.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


@triton.jit
def _sigmoid_kernel(  # noqa: PLR0913  (a kernel takes everything one by one)
    left, right, scale, bias, left_ids, right_ids, sums, slope, m, n, left_stride, right_stride, D: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    i, j, r, c = _place(m, n, ROWS, COLUMNS)
    x = _similarities(left, right, scale, None, None, r, c, m, n, left_stride, right_stride, D, STEP, PRECISION, WIDEN)
    x = x + tl.load(bias).to(tl.float32) * LOG2E
    inside = (r < m)[:, None] & (c < n)[None, :]
    own = tl.load(left_ids + tl.minimum(r, m - 1))[:, None] == tl.load(right_ids + tl.minimum(c, n - 1))[None, :]
    x = tl.where(own, -x, x)
    small = tl.exp2(-tl.abs(x))  # softplus and sigmoid by an exponential that can't overflow
    loss = (tl.maximum(x, 0.0) + tl.log2(1.0 + small)) * LN2
    g = tl.where(x > 0, 1.0, small) / (1.0 + small)
    g = tl.where(own, -g, g)
    block = i * tl.cdiv(n, COLUMNS) + j
    tl.store(sums + 2 * block, tl.sum(tl.sum(tl.where(inside, loss, 0.0), 1), 0))
    tl.store(sums + 2 * block + 1, tl.sum(tl.sum(tl.where(inside, g, 0.0), 1), 0))
    tl.store(slope + r[:, None] * n + c[None, :], g.to(slope.dtype.element_ty), mask=inside)


def _launch(  # noqa: PLR0913  (what all kernels take, and what one does)
    kernel: Any, which: int, block: Block, how: How, inputs: tuple[Any, ...], outputs: Callable[[int, int], T]
) -> T:
    """What `outputs(block rows, block columns)` made, filled by the kernel."""
    left, right = (rows if rows.stride(1) == 1 else rows.contiguous() for rows in block[:2])
    (m, width), n, narrow = left.shape, len(right), left.dtype == torch.bfloat16
    precision, shapes = how
    shape = (shapes or (NARROW if narrow else EXACT if precision == "ieee" else TF32))[which]
    down, across = triton.cdiv(m, shape.rows), triton.cdiv(n, shape.columns)
    made = outputs(down, across)
    kernel[(down * across,)](
        left, right, *inputs, *made, m, n, left.stride(0), right.stride(0), D=width, ROWS=shape.rows,
        COLUMNS=shape.columns, STEP=shape.step, PRECISION="ieee" if narrow else precision, WIDEN=INTERPRETED,
        num_warps=shape.warps, num_stages=shape.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return made


def _bytes(counts: torch.Tensor | None) -> torch.Tensor | None:
    return None if counts is None else counts.view(torch.uint8)


def _statistics(how: How, block: Block, columns_too: bool) -> tuple[torch.Tensor, torch.Tensor]:
    (m, _), n = block.left.shape, len(block.right)

    def outputs(down: int, across: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = block.left.new_empty(across, m, dtype=torch.float32)
        return rows, block.left.new_empty(down, n, dtype=torch.float32) if columns_too else None

    counts = (_bytes(block.left_counts), _bytes(block.right_counts))
    inputs = (block.scale, block.left_ids, block.right_ids, *counts)
    rows, columns = _launch(_statistics_kernel, 0, block, how, inputs, outputs)
    row = rows.logsumexp(0)
    return row, row if columns is None else columns.logsumexp(0)


def _slope(how: How, block: Block, sums: Sums) -> torch.Tensor:
    dense = [None if values is None else values.contiguous() for values in sums[:5]]
    counts = (_bytes(block.left_counts), _bytes(block.right_counts))
    inputs = (block.scale, block.left_ids, block.right_ids, *counts, *dense, sums.shift)
    slope: torch.Tensor
    (slope,) = _launch(_slope_kernel, 1, block, how, inputs, lambda *_: (_slopes(block),))
    return slope


def _sigmoid(how: How, block: Block, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def outputs(down: int, across: int) -> tuple[torch.Tensor, torch.Tensor]:
        return block.left.new_empty(down * across, 2, dtype=torch.float32), _slopes(block)

    inputs = (block.scale, bias, block.left_ids, block.right_ids)
    sums, slope = _launch(_sigmoid_kernel, 2, block, how, inputs, outputs)
    loss, on_bias = sums.sum(0).unbind()
    return loss, on_bias, slope


def _slopes(block: Block) -> torch.Tensor:
    return block.left.new_empty(len(block.left), len(block.right))


def core(precision: str = "ieee", shapes: Shapes | None = None) -> Core:
    """The core `triton`, or `triton.tf32x3` by that precision of float32 products."""
    name, how = "triton" if precision == "ieee" else f"triton.{precision}", How(precision, shapes)
    return Core(name, partial(_statistics, how), partial(_slope, how), partial(_sigmoid, how))
