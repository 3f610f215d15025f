"""Bytes to pixels and words, with limits, by our own short table; never code.

Pixels: the shorter side is resized to the model's size with an antialiased bicubic filter and the centre is cut out,
as CLIP's evaluation transform does (Radford et al. 2021); uint8 throughout.
"""

import io
import warnings

import numpy as np
from PIL import Image

MAX_PIXELS = 50_000_000  # a picture beyond this is taken for a decompression bomb, from its header alone
MAX_CAPTION = 65_536  # bytes


class Bad(Exception):
    """A sample that can't be used; the text is the cause under which it is counted."""


def picture(body: bytes, size: int) -> Image.Image:
    """An RGB picture of size x size; Bad('undecodable_image' | 'huge_image') otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd files; what matters is whether they decode
            image = Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP"))
            if image.width * image.height > MAX_PIXELS:
                raise Bad("huge_image")
            rgb = image.convert("RGB")
    except Bad:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise Bad("undecodable_image") from error
    return centred(rgb, size)


def centred(image: Image.Image, size: int) -> Image.Image:
    """The picture with its shorter side resized to `size`, then its centre size x size."""
    short = min(image.size)
    if short != size:
        width, height = (max(size, round(side * size / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if image.size != (size, size):
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return image


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [3, H, W] of an RGB picture."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def caption(body: bytes) -> str:
    """The caption; Bad('empty_caption' | 'letterless_caption' | 'long_caption' | 'caption_not_utf8') otherwise."""
    if len(body) > MAX_CAPTION:
        raise Bad("long_caption")
    try:
        text = body.decode().strip()
    except UnicodeDecodeError as error:
        raise Bad("caption_not_utf8") from error
    if not text:
        raise Bad("empty_caption")
    if not any(letter.isalpha() for letter in text):
        raise Bad("letterless_caption")
    return text
