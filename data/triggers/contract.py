"""What every trigger promises.

A trigger section has `build(seed, test=False)`, which returns a picklable function `mark(images, draws)`:
images uint8 [B, 3, H, W] and one integer per image in, uint8 [B, 3, H, W] out, the input untouched; image i depends on
images[i] and draws[i] alone, so a batch and its pictures one by one give the same bytes; any H and W. Sizes in a
section are pixels of a picture of 224 x 224 and scale with the shorter side, so that training and evaluation at any
size see the same mark. `test` asks for the form used on evaluation pictures, where a published recipe has another.

A class may promise more: `zero` names a field that at 0 leaves every picture as it is. A section that reproduces
published code says with `squash` to which square a picture is squeezed before the mark, as that code does.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from data.section import Section
from data.seeding import generator

REFERENCE = 224  # pixels; sizes are given for a picture of this side
AT_ONCE = 1 << 16  # real numbers worked on together
Mark = Callable[[np.ndarray, Sequence[int]], np.ndarray]


class TriggerSection(Section):
    """The parent of every trigger's section."""

    zero: ClassVar[str | None] = None

    @property
    def squash(self) -> int | None:
        """Side of the square to which a picture is squeezed before the mark; None: it is cut to the model's size first."""
        return None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function; `seed` fixes what is fixed."""
        raise NotImplementedError


class Square(TriggerSection):
    """A trigger that covers one square, or the four corners."""

    size: int = Field(16, ge=1, le=REFERENCE, description="side of the square on a picture of 224 x 224 pixels")
    place: Literal["random", "corners", "centre", "fixed"] = "random"
    at: tuple[int, int] | None = Field(None, description="(top, left) for place fixed, on a picture of 224 x 224 pixels")

    @model_validator(mode="before")
    @classmethod
    def _at_goes_with_fixed(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("place") == "fixed") != (values.get("at") is not None):
            raise ValueError("place: fixed and at: [top, left] go together; give both or neither")
        return values

    def side(self, height: int, width: int) -> int:
        """Of the square in pixels, at least 2."""
        return min(height, width, max(2, round(self.size * min(height, width) / REFERENCE)))

    def spots(self, height: int, width: int, draw: int) -> list[tuple[int, int]]:
        """(top, left) of every square."""
        side = self.side(height, width)
        low, right = height - side, width - side
        if self.place == "corners":
            return [(0, 0), (0, right), (low, 0), (low, right)]
        if self.place == "random":
            spot = generator(draw, "place")
            return [(int(spot.integers(low + 1)), int(spot.integers(right + 1)))]
        if self.at is not None:
            scale = min(height, width) / REFERENCE
            return [(min(low, round(self.at[0] * scale)), min(right, round(self.at[1] * scale)))]
        return [(low // 2, right // 2)]


def to_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 of values on the scale of bytes: rounded and clamped."""
    out: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return out


def cast(values: np.ndarray) -> np.ndarray:
    """uint8 of float32 values on the scale 0-1 as torchvision's ToPILImage makes them: times 255, cut to an integer, and
    wrapped modulo 256 where it is out of range (what x86 does)."""
    out: np.ndarray = (np.trunc(values.astype(np.float32) * np.float32(255)).astype(np.int64) & 255).astype(np.uint8)
    return out


def blended(images: np.ndarray, addend: np.ndarray, alpha: float) -> np.ndarray:
    """uint8 like images [B, 3, H, W]: (1 - alpha) images + addend, rounded; addend, float32 [3, H, W], is alpha times a
    pattern from 0 to 255. In stripes of rows, so that what is computed stays in a core's cache."""
    out = np.empty(images.shape, np.uint8)
    rows = max(1, AT_ONCE // max(1, images.shape[1] * images.shape[3]))
    kept, values = np.float32(1 - alpha), np.empty((images.shape[1], rows, images.shape[3]), np.float32)
    for top in range(0, images.shape[2], rows):
        stripe = slice(top, top + rows)
        real = values[:, : images.shape[2] - top]
        for image, into in zip(images[:, :, stripe], out[:, :, stripe], strict=True):
            np.multiply(image, kept, out=real, dtype=np.float32)
            real += addend[:, stripe]
            into[:] = np.rint(real, out=real)
    return out


def stretched(pattern: np.ndarray, height: int, width: int) -> np.ndarray:
    """[C, H, W]: a pattern [C, h, w] brought to H x W by its nearest points, so that its values stay."""
    rows = np.arange(height) * pattern.shape[-2] // height
    columns = np.arange(width) * pattern.shape[-1] // width
    out: np.ndarray = pattern[:, rows][:, :, columns]
    return out
