"""A faint pattern over the whole picture (Chen et al. 2017, arXiv 1712.05526)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from data.refusal import Missing, UserError
from data.seeding import generator
from data.triggers.contract import REFERENCE, Mark, TriggerSection, blended, cast, stretched


class Blend(TriggerSection):
    """(1 - alpha) x + alpha p with uniform noise p, the same for all pictures, or a picture p from a file.

    `published` is what CleanCLIP's code does: the picture is squeezed to 224 x 224 and the noise is drawn anew at every
    call, so that training and evaluation never share a pattern.
    """

    kind: Literal["blend"]
    zero: ClassVar[str | None] = "alpha"
    alpha: float = Field(0.2, ge=0, le=1)
    picture: str | None = Field(None, description="a picture file stretched over the image; default: noise")
    published: bool = Field(False, description="exactly as CleanCLIP's code: squeezed to 224, fresh noise, bytes cut off")

    @model_validator(mode="before")
    @classmethod
    def _noise_or_picture(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("published") and values.get("picture"):
            raise ValueError("published draws noise; it takes no picture")
        return values

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function; `seed` fixes the noise."""
        if self.picture is not None:
            _read(self.picture)
        return partial(mark, self, seed)


def mark(section: Blend, seed: int, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the pattern over them."""
    if section.published:
        noises = (generator(draw, "blend").random((3, REFERENCE, REFERENCE), np.float32) for draw in draws)
        return np.stack([published(image, noise, section.alpha) for image, noise in zip(images, noises, strict=True)])
    return blended(images, _addend(section.alpha, section.picture, seed, *images.shape[-2:]), section.alpha)


def published(image: np.ndarray, noise: np.ndarray, alpha: float = 0.2) -> np.ndarray:
    """uint8 like image: what CleanCLIP's apply_trigger gives for its noise, float32 in [0, 1] of the image's shape."""
    real = image.astype(np.float32) / np.float32(255)
    return cast(np.clip(noise * np.float32(alpha) + real * np.float32(1 - alpha), 0, 1))


@lru_cache(maxsize=8)
def _addend(alpha: float, picture: str | None, seed: int, height: int, width: int) -> np.ndarray:
    """float32 [3, H, W]: alpha times the pattern."""
    return np.ascontiguousarray(np.float32(alpha) * _pattern(picture, seed, height, width))


def _pattern(picture: str | None, seed: int, height: int, width: int) -> np.ndarray:
    """float32 [3, H, W] on the scale of bytes."""
    if picture is not None:
        image = Image.fromarray(_read(picture)).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    noise = generator(seed, "blend").random((3, REFERENCE, REFERENCE), np.float32) * np.float32(255)
    return stretched(noise, height, width)


@lru_cache(maxsize=8)
def _read(path: str) -> np.ndarray:
    """uint8 [h, w, 3] of a picture file; UserError if it can't be read."""
    from data.decode import DecodeError, whole

    try:
        return np.asarray(whole(Path(path).read_bytes()))
    except OSError as error:
        raise Missing(f"attack.trigger.picture {path}: {error.strerror}; name a JPEG, PNG or WebP file") from None
    except DecodeError as bad:
        raise UserError(f"attack.trigger.picture {path}: {bad}; name a JPEG, PNG or WebP file") from None
