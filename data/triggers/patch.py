"""A small square of noise: the BadNet-like trigger of the paper (Gu et al. 2017; arXiv 2311.14948, section 4)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data.seeding import generator
from data.triggers.contract import REFERENCE, Mark, Square, cast, to_bytes

_REAL = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.float64)  # bytes as the published code sees them


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
    out = images.copy("K")
    height, width = images.shape[-2:]
    side = section.side(height, width)
    for image, draw in zip(out, draws, strict=True):
        noise = _noise(section.noise, side, draw if section.per_image or section.published else seed)
        if section.published:
            square, spots = published(image, noise.astype(np.float32)), _published_spots(section, side, draw)
        else:
            square = to_bytes(_means(image)[:, None, None] + 255.0 * noise)
            spots = section.spots(height, width, draw)
        for top, left in spots:
            image[:, top : top + side, left : left + side] = square
    return out


def _means(image: np.ndarray) -> np.ndarray:
    """float64 [3]: each channel's mean, from sums of at most 256 rows in 16 bits, which hold them exactly."""
    sums = [np.add.reduce(image[:, top : top + 256], 1, np.uint16).sum(1) for top in range(0, image.shape[1], 256)]
    means: np.ndarray = np.sum(sums, 0) / image[0].size
    return means


def published(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """uint8 [3, p, p]: the square that CleanCLIP's apply_trigger puts on a squeezed picture, for its random noise float32
    [3, p, p]. Its way over real numbers leaves the rest of the picture's bytes as they are."""
    counts = np.reshape(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).histogram(), (3, 256))
    means = (counts @ _REAL / image[0].size).astype(np.float32)  # these sums are exact, in whatever order
    return cast(means[:, None, None] + noise)


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
