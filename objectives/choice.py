"""Which core computes a machine's tiles: of those that work there and give plain torch's numbers, the fastest."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

from objectives.blocks import TORCH, compiled
from objectives.tiles import WIDE, Core, Layout, Own, log_sum_exps

NAMES = ("torch", "triton", "triton.tf32x3", "torch.compile")
ROUNDS = 5


@cache
def core_of(name: str) -> Core:
    """The core of a name, the same whenever it is asked for, so that what it compiles is kept; an exception of whatever kind
    where this machine has not got it."""
    if name == "torch":
        return TORCH
    if name == "torch.compile":
        return compiled()
    if name not in NAMES:
        raise ValueError(f"{name} is none of {', '.join(NAMES)}")
    from objectives.triton_blocks import core  # a part of torch on Linux alone

    return core(name.partition(".")[2] or "ieee")


def fault(name: str, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why this machine can't compute tiles of rows [n, width] with that core; None if it can."""
    if name == "torch":
        return None
    try:
        tile = _tile(device, dtype, width, 400)
        pairs = zip(_results(core_of(name), tile), _results(TORCH, tile), strict=True)
        return None if all(_near(a, b, dtype) for a, b in pairs) else "it gives other numbers than plain torch"
    except Exception as error:  # a compiler that is missing or fails, each with its own exception
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


def fastest(
    device: torch.device, dtype: torch.dtype, width: int, names: tuple[str, ...] = NAMES, side: int = WIDE // 2
) -> str:
    """The name of the core that takes the least time for tiles of `side` rows [n, width], forward and backward.

    torch.compile, which compiles for many seconds and still writes the similarities, is measured where no Triton core works.
    """
    tile, times = _tile(device, dtype, width, side), dict[str, float]()
    for name in names:
        needed = name != "torch.compile" or not any(other.startswith("triton") for other in times)
        if needed and fault(name, device, dtype, width) is None:
            times[name] = _seconds(core_of(name), tile)
    return min(times, key=times.__getitem__)


def _near(ours: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two results are equal to 1e-4 of the largest entry; gradients of bfloat16 rows, by rounded slopes, to 1e-2."""
    close = 1e-2 if dtype == torch.bfloat16 and plain.ndim != 1 else 1e-4
    return torch.allclose(ours.float(), plain.float(), atol=close * float(plain.float().abs().max()), rtol=0)


class _Tile(NamedTuple):
    """Some rows, and layouts in which all of them count, and in which some don't."""

    left: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor
    layouts: tuple[Layout, Layout]


def _tile(device: torch.device, dtype: torch.dtype, width: int, side: int) -> _Tile:
    draw, sides = torch.Generator().manual_seed(0), (side, side + 3)
    left, right = (torch.nn.functional.normalize(torch.randn(n, width, generator=draw), dim=1) for n in sides)
    some_left, some_right = ((torch.rand(n, generator=draw) < 0.9).to(device) for n in sides)
    left, right = (rows.to(device, dtype).requires_grad_() for rows in (left, right))
    layouts = (Layout(own=Own(0, 0, side)), Layout(None, None, some_left, some_right, Own(0, 3, side)))
    return _Tile(left, right, torch.tensor(50.0, device=device, requires_grad=True), layouts)


def _results(core: Core, tile: _Tile) -> list[torch.Tensor]:
    """Row sums and gradients, both ways and one way: as in training, in autograd's functions, which record nothing."""
    out = []
    for layout, columns_too in zip(tile.layouts, (True, False), strict=True):
        with torch.enable_grad():
            row, column, own = log_sum_exps(*tile[:3], core, layout, columns_too)
            loss = row.sum() - own.sum() + (column.sum() if columns_too else 0)
        out += [row.detach(), *torch.autograd.grad(loss, tile[:3])]
    return out


def _seconds(core: Core, tile: _Tile) -> float:
    """Of ROUNDS tiles, after one that compiles; the device has nothing else to do when the clock is read."""
    began = 0.0
    for number in range(ROUNDS + 1):
        if number == 1:
            _wait(tile.left.device)
            began = time.perf_counter()
        _results(core, tile)
    _wait(tile.left.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
