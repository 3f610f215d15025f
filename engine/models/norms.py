"""BatchNorm over fixed groups of pictures, which take the place of torch's in the towers.

A group is `rows` consecutive pictures of the global batch, whatever a process or a micro-batch holds. Weight, bias and all
statistics are float32 (float64 if the module is), also for bfloat16 pictures. Three ways, all with the same result:
- one group: torch's own BatchNorm;
- several: torch's kernels for each of them, which write into one output. On pictures whose groups are laid side by side as
  channels one call would do, but turning them about, there and back, costs more than the calls (CPU: 1.3 to 2 times the
  time; on a GPU 16 passes over memory for 10). CPU kernels of group_norm take E[x^2] - E[x]^2, which loses all digits at
  a mean of 1,000. In compiled code the plain formula, which is fused;
- a part of a group that consecutive ranks hold together: their counts are equal, so that the group's mean is the mean of
  their means, and its variance the mean of their variances plus the variance of their means.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from objectives.exchange import Group, SingleRank


class GroupedNorm(nn.BatchNorm2d):
    """BatchNorm over groups of `rows` pictures; its running statistics move once a step, by the mean over groups."""

    rows: int | None  # of a group, or of this rank's part of one; None: all there are
    ranks: Group  # that hold a group together
    counts: bool  # whether statistics are noted for the running ones
    frozen: bool  # whether running statistics normalise in training too, and stay
    noted: list[torch.Tensor]  # [2, groups, C] of each micro-batch: means and unbiased variances since the last step
    replayed: "dict[GroupedNorm, torch.Tensor] | None"  # statistics over ranks of a pass that is run twice, [2, C]

    def prepare(self) -> None:
        """Makes a BatchNorm2d one of these."""
        self.rows, self.ranks = None, SingleRank()
        self.counts, self.frozen = True, False
        self.noted, self.replayed = [], None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, C, H, W]; n a multiple of `rows`."""
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        if not self.training or self.frozen:
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        if self.ranks.size > 1:
            normalised: torch.Tensor = self._over_ranks(x, weight, bias)
            return normalised
        groups = 1 if self.rows is None or len(x) <= self.rows else len(x) // self.rows
        assert groups == 1 or groups * self.rows == len(x), "a batch that ends inside a group"  # type: ignore[operator]
        if groups == 1:
            own = mean.new_zeros(2, 1, len(mean))
            # with momentum 1 the "running" statistics are this group's own
            out = F.batch_norm(x, own[0, 0], own[1, 0], weight, bias, True, 1.0, self.eps)
        else:
            several = _fused if torch.compiler.is_compiling() else _Several.apply
            out, own = several(x, weight, bias, groups, self.eps)
        if self.counts:
            self.noted.append(own)
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _over_ranks(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Of this rank's part of a group. A pass that is run again for the backward pass asks no rank again."""
        merged = self.replayed.get(self) if self.replayed is not None else None
        if merged is None:
            merged = _merged(x.detach(), weight.dtype, self.ranks)
            if self.replayed is not None:
                self.replayed[self] = merged
        if self.counts:
            mean, var = merged
            count = _count(x) * self.ranks.size
            self.noted.append(torch.stack([mean, var * (count / (count - 1))])[:, None])
        out: torch.Tensor = _Part.apply(x, weight, bias, merged, self)
        return out


def update_running_stats(norms: Sequence[GroupedNorm], taken: torch.Tensor | None = None) -> None:
    """Moves running statistics by what has been noted since the last step, or forgets it if the step was not `taken` (0-d
    bool; default: it was)."""
    norms = [norm for norm in norms if norm.noted]
    if not norms:
        return
    (momentum,) = {norm.momentum for norm in norms}
    assert momentum is not None
    parts = [torch.cat(of_all, -1) for of_all in zip(*(norm.noted for norm in norms), strict=True)]
    towards = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).mean(1).flatten()
    running: list[Any] = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    if taken is not None:
        towards = torch.where(taken, towards, torch.cat(running))
    torch._foreach_lerp_(running, torch.split(towards, [len(of) for of in running]), momentum)
    for norm in norms:
        norm.noted = []


def _fused(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What _Several gives, by the formula, which torch.compile makes few kernels of."""
    wide = x.to(weight.dtype).view(groups, -1, *x.shape[1:])
    var, mean = torch.var_mean(wide, (1, 3, 4), correction=0, keepdim=True)
    scale = (var + eps).rsqrt() * weight[:, None, None]
    out = (wide - mean) * scale + bias[:, None, None]
    count = wide[0, :, 0].numel()
    own = torch.stack([mean, var * (count / (count - 1))]).detach().flatten(2)
    return out.flatten(0, 1).to(x.dtype), own


class _Several(torch.autograd.Function):
    """(BatchNorm of each of several groups, their means and unbiased variances [2, groups, C])."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty_like(x)
        own, kept = weight.new_zeros(2, 2, groups, len(weight))
        for part, into, mean, var, saved_mean, saved_inverse in zip(
            x.chunk(groups), out.chunk(groups), *own.unbind(), *kept.unbind(), strict=True
        ):
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, mean, var, True, 1.0, eps, out=into, save_mean=saved_mean, save_invstd=saved_inverse
            )
        ctx.save_for_backward(x, weight, kept)
        ctx.eps = eps
        ctx.mark_non_differentiable(own)
        return out, own

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        groups = kept.shape[1]
        each = [
            torch.ops.aten.native_batch_norm_backward(
                grad, part, weight, None, None, mean, inverse, True, ctx.eps, [True] * 3
            )
            for part, grad, mean, inverse in zip(x.chunk(groups), grads[0].chunk(groups), *kept.unbind(), strict=True)
        ]  # fmt: skip
        on_x, on_weight, on_bias = zip(*each, strict=True)
        on_both = torch.stack([*on_weight, *on_bias]).view(2, groups, -1).sum(1)
        return torch.cat(on_x), *on_both, None, None


class _Part(torch.autograd.Function):
    """This rank's part of a group, normalised by the group's statistics; the derivative is that of the whole group.

    With x^ = (x - mean) / sqrt(var + eps) and sums over the group's N numbers of a channel,

        dL/dx = weight / sqrt(var + eps) * (dL/dy - sum(dL/dy) / N - x^ sum(dL/dy x^) / N)
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, merged: torch.Tensor, norm: GroupedNorm
    ) -> torch.Tensor:
        mean, var = merged
        ctx.save_for_backward(x, weight, mean, (var + norm.eps).rsqrt())
        ctx.norm = norm
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, norm.eps)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *moments = ctx.saved_tensors
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        slope = _slope_cuda if x.is_cuda else _slope
        return *slope(grads[0].contiguous(memory_format=layout), x, weight, moments, ctx.norm), None, None


Moments = Sequence[torch.Tensor]  # mean and 1 / sqrt(var + eps)
Slope = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _slope(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, moments: Moments, norm: GroupedNorm) -> Slope:
    """Gradients in x, and this rank's part of those in weight and bias."""
    mean, inverse = moments
    _, on_weight, on_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, inverse, True, norm.eps, [False, True, True]
    )
    both = norm.ranks.all_reduce_sum(torch.stack([on_weight, on_bias])) / (_count(x) * norm.ranks.size)
    scale = weight * inverse
    of_x = -scale * inverse * both[0]
    rest = -scale * both[1] - of_x * mean
    shape = (1, -1, 1, 1)
    on_x = torch.addcmul(torch.addcmul(rest.view(shape), x, of_x.view(shape)), grad, scale.view(shape))
    return on_x.to(x.dtype), on_weight, on_bias


def _slope_cuda(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, moments: Moments, norm: GroupedNorm) -> Slope:
    """The same by torch's kernels for this, which exist for CUDA alone and pass over memory five times."""
    mean, inverse = moments
    *sums, on_weight, on_bias = torch.batch_norm_backward_reduce(grad, x, mean, inverse, weight, True, True, True)
    both = norm.ranks.all_reduce_sum(torch.stack(sums))
    count = torch.full((1,), _count(x) * norm.ranks.size, dtype=torch.int32, device=x.device)
    on_x = torch.batch_norm_backward_elemt(grad, x, mean, inverse, weight, both[0], both[1], count)
    return on_x, on_weight, on_bias


def _merged(x: torch.Tensor, dtype: torch.dtype, ranks: Group) -> torch.Tensor:
    """[2, C]: mean and biased variance of each channel over all members' pictures, as many on each."""
    unused = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    own = torch.stack(torch.ops.aten.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
    means, variances = ranks.gather(own[None]).unbind(1)
    return torch.stack([means.mean(0), variances.mean(0) + means.var(0, correction=0)])


def _count(x: torch.Tensor) -> int:
    """Numbers of a channel."""
    return x.numel() // x.shape[1]
