"""AutoAugment (Cubuk et al. 2019, arXiv 1805.09501), the ImageNet policy, from torchvision."""

from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from data.seeding import derive_seed


def autoaugmented(image: Image.Image, *names: int | str) -> np.ndarray:
    """uint8 [3, H, W]: the picture by AutoAugment, drawn from the names alone."""
    import torch  # torchvision draws from torch's global generator: lend it a state of ours, give back its own

    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(derive_seed("autoaugment", *names))
        return np.asarray(_autoaugment()(image)).transpose(2, 0, 1)
    finally:
        torch.set_rng_state(state)


@cache
def _autoaugment() -> Any:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # imported when first needed: 1 s

    return AutoAugment(AutoAugmentPolicy.IMAGENET)
