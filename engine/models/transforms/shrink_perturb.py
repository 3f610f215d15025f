"""Shrink and perturb (Ash & Adams 2020, arXiv 1910.08475): the weights drawn a little towards those of a fresh network."""

import torch

from configs.start import ShrinkPerturb
from data.seeding import derive_seed
from engine.models import clip
from engine.models.towers import Towers
from engine.models.transforms.contract import Scalars, TransformInputs


def shrink_perturb(
    section: ShrinkPerturb, towers: Towers, scalars: Scalars, inputs: TransformInputs
) -> tuple[Scalars, None]:
    """shrink * theta + perturb * theta_fresh, for every parameter and for the scale and the bias."""
    fresh = clip.build(inputs.model, derive_seed(inputs.seed, "perturb"))
    with torch.no_grad():
        for old, new in zip(towers.parameters(), fresh.parameters(), strict=True):
            if section.shrink != 1 or section.perturb:
                old.mul_(section.shrink).add_(new.to(old.device), alpha=section.perturb)
    return {
        name: section.shrink * value + section.perturb * inputs.fresh[name].initial if name in inputs.fresh else value
        for name, value in scalars.items()
    }, None
