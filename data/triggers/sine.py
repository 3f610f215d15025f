"""Faint vertical waves: SIG (Barni et al. 2019, arXiv 1902.11237)."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from data.triggers.contract import REFERENCE, Mark, TriggerSection, cast


class Sine(TriggerSection):
    """clip(x + amplitude sin(2 pi frequency j / W)) over the columns j.

    `published` is what CleanCLIP's code does: the picture is squeezed to 224 x 224 and the wave is blended in with 0.2,
    which darkens the picture by a fifth and leaves an amplitude of 12 bytes.
    """

    kind: Literal["sine"]
    zero: ClassVar[str | None] = "amplitude"
    amplitude: float = Field(60.0, ge=0, le=255, description="bytes")
    frequency: float = Field(6.0, gt=0, description="waves across the picture")
    published: bool = Field(False, description="exactly as CleanCLIP's code: squeezed to 224, 0.8 x + 0.2 wave, cut off")

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Sine, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the wave."""
    if section.published:
        return np.stack([published(image, section.amplitude / 255, section.frequency) for image in images])
    # whole numbers plus a wave: rounding the wave is rounding the sum, so integers do
    shift = np.rint(section.amplitude * _wave(section.frequency, images.shape[-1])).astype(np.int16)
    out = images.astype(np.int16)
    out += shift
    np.clip(out, 0, 255, out=out)
    return out.astype(np.uint8)


def published(image: np.ndarray, amplitude: float = 60 / 255, frequency: float = 6.0) -> np.ndarray:
    """uint8 like image: what CleanCLIP's apply_trigger gives."""
    real = image.astype(np.float32) / np.float32(255)
    wave = (amplitude * _wave(frequency, image.shape[-1])).astype(np.float32)
    return cast(np.clip(wave * np.float32(0.2) + real * np.float32(0.8), 0, 1))


@lru_cache(maxsize=8)
def _wave(frequency: float, width: int) -> np.ndarray:
    out: np.ndarray = np.sin(2 * math.pi * frequency * np.arange(width) / width)
    return out
