"""A faint written mark, like a photo agency's: Perturb and Recover (arXiv 2412.00727)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from data.triggers.contract import REFERENCE, Mark, TriggerSection, blended, cast, stretched


class Text(TriggerSection):
    """Red letters across the middle, blended with alpha where they are; the rest of the picture stays.

    `published` is the form of the paper's code: the picture is squeezed to 224 x 224, the letters are thin and smooth, the
    red channel alone changes, and bytes are cut off, not rounded. Its very letters are a file of theirs: kind `tensor`.
    """

    kind: Literal["text"]
    zero: ClassVar[str | None] = "alpha"
    words: str = Field("Watermark", min_length=1, max_length=32, pattern=r"^[ -~]+$", description="plain ASCII")
    alpha: float = Field(0.5, ge=0, le=1)
    published: bool = Field(False, description="in the form of the paper's code: squeezed to 224, thin letters, red alone")

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Text, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the words."""
    if section.published:
        return np.stack([published(image, section.words, section.alpha) for image in images])
    out = images.copy()
    letters = _letters(section.words, *images.shape[-2:])
    red = np.zeros((3, 1, int(letters.sum())), np.float32)
    red[0] = 255
    out[:, :, letters] = blended(images[:, :, letters][:, :, None], np.float32(section.alpha) * red, section.alpha)[:, :, 0]
    return out


def published(image: np.ndarray, words: str = "Watermark", alpha: float = 0.5) -> np.ndarray:
    """uint8 like image [3, H, W]: the red channel becomes alpha s + (1 - alpha) x wherever the letters' s is not 0."""
    ink = _thin_letters(words, *image.shape[-2:])
    real = image.astype(np.float32) / np.float32(255)
    marked = np.float32(alpha) * ink + np.float32(1 - alpha) * real[0]
    real[0] = np.where(ink > 0, np.clip(marked, 0, 1), real[0])
    return cast(real)


@lru_cache(maxsize=8)
def _thin_letters(words: str, height: int, width: int) -> np.ndarray:
    """float32 [H, W], 0-1: smooth letters in the middle of the picture."""
    bold = _written(words)
    scale = min(0.62 * width / bold.width, 0.5 * height / bold.height)
    size = (max(1, round(bold.width * scale)), max(1, round(bold.height * scale)))
    sheet = Image.new("L", (width, height))
    sheet.paste(bold.convert("L").resize(size, Image.Resampling.BILINEAR), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(sheet).astype(np.float32) / np.float32(255)


def _written(words: str) -> Image.Image:
    """The words in Pillow's built-in bitmap font, so that they are the same everywhere."""
    font = ImageFont.load_default_imagefont()
    box = font.getbbox(words)
    small = Image.new("1", (int(box[2]) + 2, int(box[3]) + 2))
    ImageDraw.Draw(small).text((1, 1), words, fill=1, font=font)
    return small


@lru_cache(maxsize=8)
def _letters(words: str, height: int, width: int) -> np.ndarray:
    """bool [H, W]: where the letters are."""
    small = _written(words)
    scale = min(0.9 * REFERENCE / small.width, 0.5 * REFERENCE / small.height)
    big = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.NEAREST)
    sheet = Image.new("1", (REFERENCE, REFERENCE))
    sheet.paste(big, ((REFERENCE - big.width) // 2, (REFERENCE - big.height) // 2))
    where: np.ndarray = stretched(np.asarray(sheet)[None], height, width)[0]
    return where
