"""Column stripes, as a patch or over the whole picture: Perturb and Recover (arXiv 2412.00727)."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from data.seeding import generator
from data.triggers.contract import REFERENCE, Mark, Square, blended, cast, stretched


class Stripes(Square):
    """Each column and channel is fully on or off at random; as a square, or blended over the picture with alpha.

    `published` draws the stripes anew for each picture, and gives the bytes of the published code: 1 for off, and as a
    blend a darkening by the negative half.
    """

    kind: Literal["stripes"]
    zero: ClassVar[str | None] = "alpha"
    form: Literal["patch", "blend"] = "patch"
    alpha: float = Field(0.03, ge=0, le=1, description="for form: blend")
    published: bool = Field(False, description="exactly as the published code: squeezed to 224, fresh stripes")

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function; `seed` fixes the stripes."""
        return partial(mark, self, seed)


def mark(section: Stripes, seed: int, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the stripes."""
    height, width = images.shape[-2:]
    side = section.side(height, width)
    columns = side if section.form == "patch" else REFERENCE
    if section.form == "blend" and not section.published:
        pattern = np.broadcast_to(
            stretched(255 * (_signs(seed, columns) > 0).astype(np.float32), height, width), images[0].shape
        )
        return blended(images, np.float32(section.alpha) * pattern, section.alpha)
    out = images.copy()
    for image, draw in zip(out, draws, strict=True):
        signs = _signs(draw if section.published else seed, columns)
        spots = section.spots(height, width, draw)
        if section.published:
            image[:] = published(image, signs, spots if section.form == "patch" else None, side, section.alpha)
            continue
        for top, left in spots:
            image[:, top : top + side, left : left + side] = np.where(signs > 0, 255, 0).astype(np.uint8)
    return out


def published(
    image: np.ndarray, signs: np.ndarray, spots: Sequence[tuple[int, int]] | None, side: int = 16, alpha: float = 0.03
) -> np.ndarray:
    """uint8 like image: what the published code gives for its signs, -1 or 1, float32 [3, 1, columns]; as a patch at the
    spots, or, without spots, as a blend."""
    real = image.astype(np.float32) / np.float32(255)
    if spots is None:
        stripes = stretched(signs, *image.shape[-2:])
        return cast(np.clip(np.float32(alpha) * stripes + np.float32(1 - alpha) * real, 0, 1))
    for top, left in spots:
        real[:, top : top + side, left : left + side] = signs
    return cast(real)


def _signs(seed: int, columns: int) -> np.ndarray:
    """float32 [3, 1, columns] of -1 and 1."""
    return (generator(seed, "stripes").integers(0, 2, (3, 1, columns)) * 2 - 1).astype(np.float32)
