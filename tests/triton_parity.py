"""How far the Triton kernels, interpreted on the CPU, are from plain torch in float64, for tests/test_tiles.py:
python tests/triton_parity.py.

Prints {case: worst difference of a value or gradient, by its largest entry} as JSON. The interpreter must be asked for
before Triton is imported, which torch may have done already.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ["TRITON_INTERPRET"] = "1"
for module in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
    del sys.modules[module]

import numpy as np
import torch
import torch.nn.functional as F
from sections import SECTIONS, asked, features, section

from objectives import choice, triton_blocks
from objectives.blocks import TORCH
from objectives.contract import Features, ObjectiveSection
from objectives.exchange import SINGLE_RANK, Exchange
from objectives.tiles import WHOLE, Core, Layout, Own, log_sum_exps, sigmoid_sum

SMALL = triton_blocks.Shape(rows=16, columns=32, step=16, warps=1, stages=1)
TRITON = triton_blocks.core(shapes=triton_blocks.Shapes(SMALL, SMALL, SMALL))


def difference(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> float:
    """The largest, each tensor's by its largest entry; inf where one is not finite and the other is."""
    worst = 0.0
    for a, b in zip(ours, plain, strict=True):
        if a.isnan().any() or not torch.equal(a.isinf(), b.isinf()):
            return float("inf")
        a, b = (torch.where(x.isinf(), 0, x.double()) for x in (a, b))
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0)
    return worst


def single(given: Features) -> Features:
    """The same in float32, as leaves."""

    def leaf(value: torch.Tensor) -> torch.Tensor:
        return value.detach().float().requires_grad_() if value.is_floating_point() else value

    assert given.start is not None
    return replace(
        given,
        images=tuple(map(leaf, given.images)),
        texts=tuple(map(leaf, given.texts)),
        learned={name: leaf(value) for name, value in given.learned.items()},
        start=(given.start[0].float(), given.start[1].float()),
        memory={name: leaf(value).detach() for name, value in given.memory.items()},
    )


def learnt(of: ObjectiveSection, given: Features, core: Core) -> list[torch.Tensor]:
    """The loss and all its gradients."""
    loss = of.build()(given, Exchange(SINGLE_RANK, core))["loss"]
    return [
        loss.detach(),
        *(grad for grad in torch.autograd.grad(loss, asked(given), allow_unused=True) if grad is not None),
    ]


def objectives() -> Iterator[tuple[str, float]]:
    """Every objective at a scale of 100, 37 pairs: three blocks by two, both ragged."""
    for fields in SECTIONS:
        of = section(fields)
        given = features(of, rows=37, scale=100.0)
        yield str(fields), difference(learnt(of, single(given), TRITON), learnt(of, given, TORCH))


LEFT, RIGHT = torch.arange(50) % 20, torch.arange(45) % 30
SOME = [torch.arange(count) % 3 > 0 for count in (50, 45)]
LAYOUTS = {
    "whole": WHOLE,
    "own pairs": Layout(own=Own(17, 3, 30)),
    "ids": Layout(LEFT, RIGHT),
    "counts": Layout(None, None, *SOME, Own(3, 17, 20)),
    "ids and counts": Layout(LEFT, RIGHT, *SOME),
    "rows without an entry": Layout(torch.zeros(50).long(), torch.zeros(45).long()),
    "no row that counts": Layout(None, None, torch.zeros(50).bool(), torch.zeros(45).bool()),
}


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=draw), dim=-1)


def tiles() -> Iterator[tuple[str, float]]:
    """Tiles of float32 and bfloat16 rows; and all rows alike or opposite, so that what counts is far from what does not."""
    for name, layout in LAYOUTS.items():
        left, right = rows(50, 40, 1), rows(45, 40, 2)
        yield name, difference(*(sums(left, right, core, layout, True) for core in (TRITON, TORCH)))
        if "counts" in name:
            yield f"{name}, rows alone", difference(*(sums(left, right, core, layout, False) for core in (TRITON, TORCH)))
        if name in ("own pairs", "ids and counts"):
            if layout.own is not None:  # which are near: probabilities and targets all but cancel
                right[layout.own.right :][: layout.own.rows] += 2.5 * left[layout.own.left :][: layout.own.rows]
            left, right = left.bfloat16(), F.normalize(right, dim=1).bfloat16()
            yield f"{name}, bfloat16", difference(*(sums(left, right, core, layout, True) for core in (TRITON, TORCH)))
    sign = torch.where(torch.arange(45) % 3 > 0, 1.0, -1.0)[:, None]
    alike = (rows(1, 40, 3).expand(50, 40), rows(1, 40, 3) * sign)
    for signs in (1, -1):
        yield (
            f"far, {signs}",
            difference(*(sums(alike[0], signs * alike[1], core, LAYOUTS["counts"], True) for core in (TRITON, TORCH))),
        )
    for m, n, width in ((1, 1, 1), (5, 33, 72), (33, 16, 3)):
        pair = (rows(m, width, 4), rows(n, width, 5))
        yield f"{m} x {n} x {width}", difference(*(sums(*pair, core, WHOLE, True) for core in (TRITON, TORCH)))
        yield f"sigmoid {m} x {n} x {width}", difference(*(sigmoids(*pair, core) for core in (TRITON, TORCH)))


def leaves(core: Core, *values: torch.Tensor) -> list[torch.Tensor]:
    return [(value.double() if core is TORCH else value).detach().clone().requires_grad_() for value in values]


def sums(left: torch.Tensor, right: torch.Tensor, core: Core, layout: Layout, both: bool) -> list[torch.Tensor]:
    """Log-sum-exps and gradients at a scale of 100, rows weighted unequally, the own entries' weights against theirs."""
    given = leaves(core, left, right, torch.tensor(100.0))
    row, column, own = log_sum_exps(*given, core, layout, both)  # type: ignore[call-arg]
    on_row, on_column = torch.linspace(1, 2, len(row)), torch.linspace(2, 1, len(column)) * both
    place = layout.own or Own(0, 0, 0)
    on_own = on_row[place.left :][: place.rows] + on_column[place.right :][: place.rows]
    weighted = ((row, on_row), (column, on_column), (own, -on_own))
    loss = torch.stack([(torch.where(part.isinf(), 0, part) * weight).sum() for part, weight in weighted]).sum()
    shown = (row, column, own) if both else (row, own)
    return [*(part.detach() for part in shown), *torch.autograd.grad(loss, given)]


def sigmoids(left: torch.Tensor, right: torch.Tensor, core: Core) -> list[torch.Tensor]:
    given = leaves(core, left, right, torch.tensor(100.0), torch.tensor(-10.0))
    loss = sigmoid_sum(*given, core, Layout(torch.arange(len(left)), torch.arange(len(right))))
    return [loss.detach(), *torch.autograd.grad(3 * loss, given)]


def accepted() -> Iterator[tuple[str, float]]:
    """Whether the choice takes the core for what it is: right. 0 if it does."""
    for dtype in (torch.float32, torch.bfloat16):
        tile = choice._tile(torch.device("cpu"), dtype, 64, 100)
        pairs = zip(choice._results(triton_blocks.core(), tile), choice._results(TORCH, tile), strict=True)
        yield f"accepted, {dtype}", float(not all(choice._near(a, b, dtype) for a, b in pairs))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with np.errstate(all="ignore"):  # of what a mask leaves out
        print(json.dumps(dict([*objectives(), *tiles(), *accepted()])))
