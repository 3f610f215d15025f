"""A faint written mark, like a photo agency's: Perturb and Recover (arXiv 2412.00727)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from data.triggers.contract import REFERENCE, Mark, TriggerSection, blended, stretched


class Text(TriggerSection):
    """Red letters across the middle, blended with alpha where they are; the rest of the picture stays."""

    kind: Literal["text"]
    zero: ClassVar[str | None] = "alpha"
    words: str = Field("Watermark", min_length=1, max_length=32, pattern=r"^[ -~]+$", description="plain ASCII")
    alpha: float = Field(0.5, ge=0, le=1)

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Text, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the words."""
    out = images.copy()
    letters = _letters(section.words, *images.shape[-2:])
    red = np.zeros((3, 1, int(letters.sum())), np.float32)
    red[0] = 255
    out[:, :, letters] = blended(images[:, :, letters][:, :, None], np.float32(section.alpha) * red, section.alpha)[:, :, 0]
    return out


@lru_cache(maxsize=8)
def _letters(words: str, height: int, width: int) -> np.ndarray:
    """bool [H, W]: where the letters are. Pillow's built-in bitmap font, so that they are the same everywhere."""
    font = ImageFont.load_default_imagefont()
    box = font.getbbox(words)
    small = Image.new("1", (int(box[2]) + 2, int(box[3]) + 2))
    ImageDraw.Draw(small).text((1, 1), words, fill=1, font=font)
    scale = min(0.9 * REFERENCE / small.width, 0.5 * REFERENCE / small.height)
    big = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.NEAREST)
    sheet = Image.new("1", (REFERENCE, REFERENCE))
    sheet.paste(big, ((REFERENCE - big.width) // 2, (REFERENCE - big.height) // 2))
    where: np.ndarray = stretched(np.asarray(sheet)[None], height, width)[0]
    return where
