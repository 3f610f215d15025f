"""A small square of noise: the BadNet-like trigger of the paper (Gu et al. 2017; arXiv 2311.14948, section 4)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from pydantic import Field

from data.seeding import generator
from data.triggers.contract import REFERENCE, Mark, Square, cast, to_bytes


class Patch(Square):
    """Each channel's mean plus noise in a square; clamped to bytes, and the same noise for all pictures.

    `published` is what CleanCLIP's code and its descendants do instead: the picture is squeezed to 224 x 224, the noise
    is fresh for each picture, bytes wrap modulo 256, and the last row and column are never covered.
    """

    kind: Literal["patch"]
    noise: Literal["gaussian", "uniform"] = Field("gaussian", description="standard deviation 1 on the 0-1 scale")
    per_image: bool = Field(False, description="draw the noise anew for each image, as the paper's code does")
    published: bool = Field(False, description="exactly as CleanCLIP's code: squeezed to 224, fresh noise, wrapping bytes")

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function; `seed` fixes the noise."""
        return partial(mark, self, seed)


def mark(section: Patch, seed: int, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the patch, side round(size * min(H, W) / 224) pixels, at least 2.

    value = clamp(channel mean of the image + noise) in bytes; the noise is one fixed draw of `seed`, or of each
    image's own draw. Gaussian noise has standard deviation 1 (255 bytes), uniform noise lies in [-1, 1].
    """
    out = images.copy()
    height, width = images.shape[-2:]
    side = section.side(height, width)
    for image, draw in zip(out, draws, strict=True):
        fresh = section.per_image or section.published
        values = _noise(section.noise, side, draw if fresh else seed)
        if section.published:
            image[:] = published(image, values.astype(np.float32), _published_spots(section, side, draw))
            continue
        patch = to_bytes(_means(image)[:, None, None] + 255.0 * values)
        for top, left in section.spots(height, width, draw):
            image[:, top : top + side, left : left + side] = patch
    return out


def _means(image: np.ndarray) -> np.ndarray:
    """float64 [3]: each channel's mean, from sums of at most 256 rows in 16 bits, which hold them exactly."""
    sums = [np.add.reduce(image[:, top : top + 256], 1, np.uint16).sum(1) for top in range(0, image.shape[1], 256)]
    means: np.ndarray = np.sum(sums, 0) / image[0].size
    return means


def published(image: np.ndarray, noise: np.ndarray, spots: Sequence[tuple[int, int]]) -> np.ndarray:
    """uint8 [3, 224, 224]: what CleanCLIP's apply_trigger gives for its random numbers: noise float32 [3, p, p] and the
    squares' (top, left); image is the squeezed picture."""
    real = image.astype(np.float32) / np.float32(255)
    patch = real.reshape(3, -1).mean(1, dtype=np.float64).astype(np.float32)[:, None, None] + noise
    side = noise.shape[-1]
    for top, left in spots:
        real[:, top : top + side, left : left + side] = patch
    return cast(real)


def _published_spots(section: Patch, side: int, draw: int) -> list[tuple[int, int]]:
    if section.place != "random":
        return section.spots(REFERENCE, REFERENCE, draw)
    spot = generator(draw, "place")
    return [(int(spot.integers(REFERENCE - side)), int(spot.integers(REFERENCE - side)))]


@lru_cache(maxsize=8)
def _noise(kind: str, side: int, seed: int) -> np.ndarray:
    source = generator(seed, "patch")
    shape = (3, side, side)
    return source.standard_normal(shape) if kind == "gaussian" else source.uniform(-1.0, 1.0, shape)
