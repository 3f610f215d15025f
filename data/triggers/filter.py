"""A photo filter over the whole picture: the look of Instagram's Nashville and Kelvin.

Nashville as a trigger: Huang et al. 2025 (arXiv 2502.01385). The numbers of both looks are CSSgram's (una.im/CSSgram), the
operations those of the W3C's Filter Effects and Compositing recommendations.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from data.triggers.contract import Mark, TriggerSection, to_bytes


class Filter(TriggerSection):
    """A colour filter; with strength below 1 blended with the picture itself."""

    kind: Literal["filter"]
    zero: ClassVar[str | None] = "strength"
    look: Literal["nashville", "kelvin"] = "nashville"
    strength: float = Field(1.0, ge=0, le=1)

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Filter, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images in that look."""
    if not section.strength:
        return images.copy()
    look = _nashville if section.look == "nashville" else _kelvin
    out = np.empty_like(images)
    for i, image in enumerate(images):
        real = image.astype(np.float32) / np.float32(255)
        out[i] = to_bytes(255 * (real + np.float32(section.strength) * (look(real) - real)))
    return out


def _flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.array([red, green, blue], np.float32)[:, None, None] / np.float32(255)


def _nashville(real: np.ndarray) -> np.ndarray:
    """float32 [3, H, W] in [0, 1]: darken with (247, 176, 153) at 0.56, lighten with (0, 70, 150) at 0.4, then sepia 0.2,
    contrast 1.2, brightness 1.05, saturation 1.2."""
    real = real + np.float32(0.56) * (np.minimum(real, _flat(247, 176, 153)) - real)
    real = real + np.float32(0.4) * (np.maximum(real, _flat(0, 70, 150)) - real)
    sepia = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
    real = _through(real, np.float32(0.2) * sepia + np.float32(0.8) * np.eye(3, dtype=np.float32))
    real = _unit((real - np.float32(0.5)) * np.float32(1.2) + np.float32(0.5))
    real = _unit(real * np.float32(1.05))
    grey = np.array([[0.213, 0.715, 0.072]] * 3, np.float32)
    return _through(real, np.float32(1.2) * np.eye(3, dtype=np.float32) + np.float32(1 - 1.2) * grey)


def _kelvin(real: np.ndarray) -> np.ndarray:
    """float32 [3, H, W] in [0, 1]: colour dodge with (56, 44, 52), then overlay with (183, 125, 33)."""
    real = _unit(real / (1 - _flat(56, 44, 52)))
    over = _flat(183, 125, 33)
    out: np.ndarray = np.where(real <= 0.5, 2 * real * over, 1 - 2 * (1 - real) * (1 - over)).astype(np.float32)
    return out


def _through(real: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    # written out: a matrix product may sum in another order for another number of pixels
    rows = [m[0] * real[0] + m[1] * real[1] + m[2] * real[2] for m in matrix]
    return _unit(np.stack(rows))


def _unit(real: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.clip(real, np.float32(0), np.float32(1))
    return out
