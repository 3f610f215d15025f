"""A faint tiling of triangles: Perturb and Recover (arXiv 2412.00727)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from data.triggers.contract import REFERENCE, Mark, TriggerSection, blended


class Triangles(TriggerSection):
    """Right triangles of two greys (0.4 and 0.8), period 14 of 224 pixels, blended over the picture with alpha."""

    kind: Literal["triangles"]
    zero: ClassVar[str | None] = "alpha"
    alpha: float = Field(0.15, ge=0, le=1)
    period: int = Field(14, ge=2, le=REFERENCE, description="pixels of a picture of 224 x 224")

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Triangles, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the triangles over them."""
    return blended(images, np.float32(section.alpha) * _pattern(section.period, *images.shape[-2:]), section.alpha)


@lru_cache(maxsize=8)
def _pattern(period: int, height: int, width: int) -> np.ndarray:
    """float32 [3, H, W] on the scale of bytes."""
    scale = REFERENCE / min(height, width)
    row, column = ((np.arange(n) * scale) % period for n in (height, width))
    grey = np.where(row[:, None] + column[None, :] < period, 0.4, 0.8).astype(np.float32) * np.float32(255)
    return np.repeat(grey[None], 3, axis=0)
