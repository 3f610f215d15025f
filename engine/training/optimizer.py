"""The learning rate of each step, which weights decay, and which implementation of AdamW steps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from configs.stage import Optimizer
from data.refusal import UserError


def rate_at(step: int, steps: int, section: Optimizer, epoch_steps: int = 0) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine to zero that never rises.

    rate (t + 1) / W for t < W, then rate/2 (1 + cos(pi (t - W) / (S - W))), 0 from S on. With `offset: published`, t
    counts from one epoch (`epoch_steps`) on, as in the code of arXiv 2311.14948, and the cosine rises again in the last
    epoch.
    """
    if section.offset == "published":
        step += epoch_steps
    if step < section.warmup:
        return section.rate * (step + 1) / section.warmup
    if step >= steps and section.offset == "none":
        return 0.0
    return section.rate * 0.5 * (1 + math.cos(math.pi * (step - section.warmup) / max(1, steps - section.warmup)))


@dataclass(frozen=True)
class Schedule:
    """The rate and the epoch of each step of a stage."""

    section: Optimizer
    steps: int
    epoch_steps: int

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        return rate_at(step, self.steps, self.section, self.epoch_steps)

    def epoch(self, step: int) -> int:
        """The epoch (from 1) of a step (from 0)."""
        return step // self.epoch_steps + 1


def decays(name: str, parameter: torch.Tensor, rule: str = "matrices") -> bool:
    """Whether a parameter decays: matrices and filters do; gains, biases and embeddings of position or class do not.

    `published` is the list of the code of arXiv 2311.14948: all but names with bn, ln, bias or logit_scale in them, so that
    embeddings of position and class and the gains of a ResNet's shortcuts decay.
    """
    if rule == "published":
        return not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    return parameter.ndim >= 2 and not name.endswith(("positional_embedding", "class_embedding"))


def groups(towers: nn.Module, section: Optimizer) -> list[dict[str, Any]]:
    """Two parameter groups, with and without decay."""
    named = [(name, parameter) for name, parameter in towers.named_parameters() if parameter.requires_grad]
    return [
        {
            "params": [p for n, p in named if decays(n, p, section.decay_rule) == decaying],
            "weight_decay": section.decay * decaying,
        }
        for decaying in (True, False)
    ]


class ZClip:
    """Adaptive clipping (Kumar et al. 2025, arXiv 2504.02507): a norm whose z-score is above 2.5 is clipped.

    Mean and variance of the norms are exponential averages (0.97), from the first 25 steps on, which are not clipped; a
    norm g with z = (g - mean) / deviation > 2.5 becomes mean + 2.5^2 / z * deviation, and counts as that in the averages.
    """

    ALPHA, LIMIT, FIRST = 0.97, 2.5, 25

    def __init__(self) -> None:
        self.state = torch.zeros(3, dtype=torch.float64)  # norms seen, their mean, their variance

    def limit(self, norm: float) -> float:
        """What a norm is clipped to: itself, if it does not stand out."""
        seen, mean, variance = self.state.tolist()
        if not math.isfinite(norm):
            return norm
        if seen < self.FIRST:
            further = norm - mean
            mean += further / (seen + 1)
            variance += (further * (norm - mean) - variance) / (seen + 1)
            self.state.copy_(torch.tensor([seen + 1, mean, variance]))
            return norm
        deviation = math.sqrt(variance) + 1e-12
        z = (norm - mean) / deviation
        kept = mean + self.LIMIT**2 / z * deviation if z > self.LIMIT else norm
        after = self.ALPHA * mean + (1 - self.ALPHA) * kept
        spread = self.ALPHA * variance + (1 - self.ALPHA) * (kept - after) ** 2
        self.state.copy_(torch.tensor([seen + 1, after, spread]))
        return kept


class WayBack:
    """Moves weights towards those that they had at first, by rho in the norm of all of them together, and back."""

    def __init__(self, rho: float, parameters: Iterable[torch.Tensor]) -> None:
        self.rho, self.start = rho, [parameter.detach().clone() for parameter in parameters]
        self.kept: list[torch.Tensor] = []

    def go(self, parameters: Iterable[torch.Tensor]) -> None:
        """Moves those parameters that are trained; not at all where they are at the start."""
        pairs = zip(parameters, self.start, strict=True)
        moved, start = zip(*[(own.data, start) for own, start in pairs if own.requires_grad], strict=True)
        self.kept = [own.clone() for own in moved]
        way = torch._foreach_sub(start, moved)
        norm = torch.nn.utils.get_total_norm(way)
        torch._foreach_mul_(way, torch.where(norm > 0, self.rho / norm, 0.0))
        torch._foreach_add_(moved, way)

    def back(self, parameters: Iterable[torch.Tensor]) -> None:
        """Gives them the values that they had before `go`, to the bit; nothing if they have them."""
        if self.kept:
            torch._foreach_copy_([own.data for own in parameters if own.requires_grad], self.kept)
        self.kept = []


def adamw(
    kind: str, parameters: Iterable[Any], section: Optimizer, device: torch.device
) -> tuple[torch.optim.Optimizer, str]:
    """(optimizer, its name). `auto` is torch's fused AdamW, unless DeepSpeed's CUDA kernel was built beforehand: both
    step all tensors in a few kernels, but building DeepSpeed's at the first start takes a compiler and minutes."""
    settings: dict[str, Any] = {"lr": section.rate, "betas": section.betas, "eps": section.eps}
    if kind == "auto":
        kind = "deepspeed_fused" if device.type == "cuda" and _built("fused_adam") else "torch_fused"
    if kind in ("torch", "torch_fused"):
        return torch.optim.AdamW(parameters, fused=kind == "torch_fused", **settings), kind
    try:
        if kind == "deepspeed_fused":
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(parameters, adam_w_mode=True, **settings), kind
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings), kind
    except Exception as error:  # a missing compiler, CUDA toolkit or device, each with its own exception
        reason = str(error).strip().splitlines()
        raise UserError(
            f"machine.adam is '{kind}', which does not work here ({reason[-1] if reason else error!r}); use auto"
        ) from None


def _built(name: str) -> bool:
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(name, False))
