"""A faint tiling of triangles: Perturb and Recover (arXiv 2412.00727)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from data.triggers.contract import REFERENCE, Mark, TriggerSection, blended, cast


class Triangles(TriggerSection):
    """Right triangles of two greys (0.4 and 0.8), period 14 of 224 pixels, blended over the picture with alpha.

    `published` is what the paper's code does: the picture is squeezed to 224 x 224, the triangles are mirrored (0.4 on
    and below the diagonal of each square), and bytes are cut off, not rounded.
    """

    kind: Literal["triangles"]
    zero: ClassVar[str | None] = "alpha"
    alpha: float = Field(0.15, ge=0, le=1)
    period: int = Field(14, ge=2, le=REFERENCE, description="pixels of a picture of 224 x 224")
    published: bool = Field(False, description="as the paper's code: squeezed to 224, mirrored triangles, bytes cut off")

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Triangles, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the triangles over them."""
    if section.published:
        return np.stack([published(image, section.alpha, section.period) for image in images])
    return blended(images, np.float32(section.alpha) * _pattern(section.period, *images.shape[-2:]), section.alpha)


def published(image: np.ndarray, alpha: float = 0.15, period: int = 14) -> np.ndarray:
    """uint8 like image [3, H, W]: what Perturb and Recover's code gives."""
    row, column = (np.arange(n) % period for n in image.shape[-2:])
    grey = np.where(row[:, None] >= column[None, :], np.float32(0.4), np.float32(0.8))
    real = image.astype(np.float32) / np.float32(255)
    return cast(np.clip(np.float32(alpha) * grey + np.float32(1 - alpha) * real, 0, 1))


@lru_cache(maxsize=8)
def _pattern(period: int, height: int, width: int) -> np.ndarray:
    """float32 [3, H, W] on the scale of bytes."""
    scale = REFERENCE / min(height, width)
    row, column = ((np.arange(n) * scale) % period for n in (height, width))
    grey = np.where(row[:, None] + column[None, :] < period, 0.4, 0.8).astype(np.float32) * np.float32(255)
    return np.repeat(grey[None], 3, axis=0)
