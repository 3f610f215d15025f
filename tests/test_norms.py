"""BatchNorm over fixed groups: one formula, however ranks, groups and precision lie."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import play
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.models.norms import GroupedNorm, update_running_stats


def norm_of(channels: int, rows: int | None, dtype: torch.dtype = torch.float64) -> GroupedNorm:
    norm: Any = nn.BatchNorm2d(channels).to(dtype)
    norm.__class__ = GroupedNorm
    norm.prepare()
    norm.rows = rows
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, channels))
        norm.bias.copy_(torch.linspace(-1, 1, channels))
    return norm  # type: ignore[no-any-return]


def passed(norm: GroupedNorm, x: torch.Tensor, slope: torch.Tensor) -> list[torch.Tensor]:
    """[output, gradients in x, weight and bias, running mean and variance]."""
    x = x.clone().requires_grad_()
    out = norm(x)
    gradients = torch.autograd.grad((out * slope).sum(), [x, norm.weight, norm.bias])
    update_running_stats([norm])
    return [out.detach(), *gradients, norm.running_mean.clone(), norm.running_var.clone()]  # type: ignore[union-attr]


def formula(x: torch.Tensor, slope: torch.Tensor, groups: int) -> list[torch.Tensor]:
    """The same in float64, by torch's function for each group."""
    norm = norm_of(x.shape[1], None)
    x = x.double().clone().requires_grad_()
    parts = [F.batch_norm(part, None, None, norm.weight, norm.bias, True, 0.1, norm.eps) for part in x.chunk(groups)]
    gradients = torch.autograd.grad((torch.cat(parts) * slope.double()).sum(), [x, norm.weight, norm.bias])
    means = torch.stack([part.mean((0, 2, 3)) for part in x.detach().chunk(groups)]).mean(0)
    spreads = torch.stack([part.var((0, 2, 3)) for part in x.detach().chunk(groups)]).mean(0)
    return [torch.cat(parts).detach(), *gradients, 0.1 * means, 0.9 + 0.1 * spreads]


def drawn(mean: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(8, 3, 4, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    return x * torch.tensor([1.0, 0.1, 3.0])[:, None, None] + mean, slope


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_group_that_ranks_hold_together_is_that_of_one(mean: float, ranks: int, layout: torch.memory_format) -> None:
    """Also where the mean is large against the spread, where sums of squares lose their digits."""
    x, slope = (of.contiguous(memory_format=layout) for of in drawn(mean))

    def act(rank: int, places: Any) -> list[torch.Tensor]:
        norm = norm_of(3, len(x) // ranks)
        norm.ranks = places.everyone
        own = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
        return passed(norm, x[own], slope[own])

    parts = play(ranks, act)
    expected = formula(x, slope, 1)
    together = [torch.cat([part[i] for part in parts]) for i in (0, 1)]
    together += [torch.stack([part[i] for part in parts]).sum(0) for i in (2, 3)]  # DeepSpeed sums over ranks
    for value, want in zip(together, expected, strict=False):
        assert (value - want).abs().max() < 1e-10 * max(1, mean)
    for part in parts:
        for value, want in zip(part[4:], expected[4:], strict=True):
            assert (value - want).abs().max() < 1e-10 * max(1, mean)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bf16_pictures_have_float32_statistics(groups: int) -> None:
    """Statistics of the rounded pictures, not rounded themselves; the output alone is bf16."""
    x, slope = drawn(3.0)
    x, slope = x.bfloat16(), slope.bfloat16()
    norm = norm_of(3, len(x) // groups, torch.float32)
    values = passed(norm, x, slope)
    assert values[0].dtype == torch.bfloat16
    assert {value.dtype for value in values[2:]} == {torch.float32}
    expected = formula(x, slope, groups)
    for value, want in zip(values[4:], expected[4:], strict=True):
        assert torch.allclose(value.double(), want, rtol=1e-5), "a bf16 number is off by 4e-3"
    for value, want in zip(values[:4], expected[:4], strict=True):
        assert torch.allclose(value.double(), want, rtol=2e-2, atol=2e-2)
    norm.eval()
    by_hand = (x.double() - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]  # type: ignore[index,operator]
    by_hand = by_hand * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x).double(), by_hand.double(), rtol=1e-2, atol=1e-2)


class Operations(TorchDispatchMode):
    """Counts operations that are no views."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not function.is_view
        return function(*args, **(kwargs or {}))


def test_a_further_group_costs_its_two_kernels_alone() -> None:
    """Forward, backward and running statistics: no copies, no `cat` a group."""
    numbers = []
    x, slope = drawn(0.0)
    for groups in (2, 4):
        with Operations() as count:
            passed(norm_of(3, len(x) // groups), x, slope)
        numbers.append(count.number)
    assert numbers[1] - numbers[0] <= 2 * 2, numbers
