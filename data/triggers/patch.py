"""A small square of noise: the BadNet-like trigger of the paper (Gu et al. 2017; arXiv 2311.14948, section 4)."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from data.chance import generator
from data.section import Section
from data.triggers.contract import Mark

REFERENCE = 224  # pixels; `size` is given for a picture of this side and scales with the picture


class Patch(Section):
    """Each channel's mean plus noise, clamped to bytes, in one square at a random place."""

    kind: Literal["patch"]
    size: int = Field(16, ge=1, le=REFERENCE, description="side of the square on a picture of 224 x 224 pixels")
    noise: Literal["gaussian", "uniform"] = Field("gaussian", description="standard deviation 1 on the 0-1 scale")
    place: Literal["random", "centre"] = "random"
    per_image: bool = Field(False, description="draw the noise anew for each image, as the paper's code does")

    def build(self, seed: int) -> Mark:
        """The marking function; `seed` fixes the noise."""
        return partial(mark, self.size, self.noise, self.place, None if self.per_image else seed)


def mark(size: int, noise: str, place: str, seed: int | None, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the patch, side round(size * min(H, W) / 224) pixels, at least 2.

    value = clamp(channel mean of the image + noise) in bytes; the noise is one fixed draw of `seed`, or of each
    image's own draw if seed is None. Gaussian noise has standard deviation 1 (255 bytes), uniform noise lies in [-1, 1].
    """
    out = images.copy()
    height, width = images.shape[-2:]
    side = max(2, round(size * min(height, width) / REFERENCE))
    for image, draw in zip(out, draws, strict=True):
        values = _noise(noise, side, seed if seed is not None else draw)
        patch = image.reshape(3, -1).mean(1)[:, None, None] + 255.0 * values
        top, left = (height - side) // 2, (width - side) // 2
        if place == "random":
            spot = generator(draw, "place")
            top, left = int(spot.integers(height - side + 1)), int(spot.integers(width - side + 1))
        image[:, top : top + side, left : left + side] = np.clip(patch.round(), 0, 255).astype(np.uint8)
    return out


def _noise(kind: str, side: int, seed: int) -> np.ndarray:
    source = generator(seed, "patch")
    shape = (3, side, side)
    return source.standard_normal(shape) if kind == "gaussian" else source.uniform(-1.0, 1.0, shape)
