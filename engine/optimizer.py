"""The learning rate of each step, which weights decay, and which implementation of AdamW steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from configs.stage import Optimizer
from data.refusal import Refusal


def rate_at(step: int, steps: int, section: Optimizer) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine to zero that never rises.

    rate (t + 1) / W for t < W, then rate/2 (1 + cos(pi (t - W) / (S - W))).
    """
    if step < section.warmup:
        return section.rate * (step + 1) / section.warmup
    if step >= steps:
        return 0.0
    return section.rate * 0.5 * (1 + math.cos(math.pi * (step - section.warmup) / (steps - section.warmup)))


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter decays: matrices and filters do; gains, biases and embeddings of position or class do not."""
    return parameter.ndim >= 2 and not name.endswith(("positional_embedding", "class_embedding"))


def groups(towers: nn.Module, section: Optimizer) -> list[dict[str, Any]]:
    """Two parameter groups, with and without decay."""
    named = [(name, parameter) for name, parameter in towers.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for n, p in named if decays(n, p) == decaying], "weight_decay": section.decay * decaying}
        for decaying in (True, False)
    ]


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
        raise Refusal(
            f"machine.adam is '{kind}', which does not work here ({reason[-1] if reason else error!r}); use auto"
        ) from None


def _built(name: str) -> bool:
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(name, False))
