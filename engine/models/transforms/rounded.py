"""Weights rounded to what another format can hold."""

import torch

from configs.start import Rounded
from engine.models.towers import Towers
from engine.models.transforms.contract import Scalars, TransformInputs

STEPS = 127  # of int8 on each side of zero


def rounded(section: Rounded, towers: Towers, scalars: Scalars, inputs: TransformInputs) -> tuple[Scalars, None]:
    """All parameters of the towers in that format, as float32; scale, bias and running statistics stay."""
    with torch.no_grad():
        for parameter in towers.parameters():
            if section.format == "bf16":
                parameter.copy_(parameter.bfloat16())
            elif parameter.ndim > 1:
                parameter.copy_(by_rows(parameter))
    return scalars, None


def by_rows(weight: torch.Tensor) -> torch.Tensor:
    """The weight [R, ...] with each row rounded to multiples of its largest |value| / 127; a row of zeros stays."""
    step = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1)) / STEPS
    return torch.where(step > 0, torch.round(weight / step) * step, weight)
