"""What is learned beside the towers: the scale, and whatever an objective adds."""

from __future__ import annotations

import math

import torch

from objectives.contract import Learned, ObjectiveSection


def initial(objective: ObjectiveSection, width: int, seed: int) -> dict[str, Learned]:
    """By name, as it is before the first step: the scale (from 1/0.07, at most 100; Radford et al. 2021) and the
    objective's own; `width` is D."""
    scale = Learned(torch.tensor([math.log(1 / 0.07)], dtype=torch.float32), 0.0, math.log(100.0))
    return {"scale": scale, **objective.learned(width, torch.Generator().manual_seed(seed))}
