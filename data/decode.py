"""Bytes to pixels and words, with limits, by our own short table; never code.

Pixels: the shorter side is resized to the model's size with an antialiased bicubic filter and the centre is cut out,
as CLIP's evaluation transform does (Radford et al. 2021); uint8 throughout. `exact` stays within one level of Pillow's
result; `fast` decodes at a reduced scale where that suffices and filters linearly.
"""

from __future__ import annotations

import io
import json
import warnings
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image

from data.store import Body

MAX_PIXELS = 50_000_000  # a picture beyond this is taken for a decompression bomb, from its header alone
MAX_CAPTION = 65_536  # bytes
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow would cut their values off, not scale them
DecodeMode = Literal["exact", "fast"]


class DecodeError(Exception):
    """A sample that can't be used; `cause`, such as undecodable_image, is what it is counted under."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def picture(body: Body, size: int, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [3, size, size]; DecodeError('undecodable_image' | 'huge_image' | 'animated_image' | 'sixteen_bit_image')
    otherwise."""
    return centred(whole(body, size if mode == "fast" else 0, mode), size, mode)


def whole(body: Body, least: int = 0, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [H, W, 3], the whole picture; `fast` may give it smaller, its shorter side no less than `least`."""
    if body[:2] == b"\xff\xd8" and (out := _jpeg(body, least, mode)) is not None:
        return out
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd files; what matters is whether they decode
            image = Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP"))
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError("huge_image")
            if getattr(image, "n_frames", 1) > 1:
                raise DecodeError("animated_image")
            if image.mode in SIXTEEN_BIT:
                raise DecodeError("sixteen_bit_image")
            return np.array(image.convert("RGB"))
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DecodeError("undecodable_image") from error


def _jpeg(body: Body, least: int, mode: DecodeMode) -> np.ndarray | None:
    """By libjpeg-turbo; None for what it takes no responsibility for, such as CMYK or a damaged file."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(body)
        if height * width > MAX_PIXELS:
            raise DecodeError("huge_image")
        if space not in ("YCbCr", "Gray"):
            return None
        quick = {"fastdct": True, "fastupsample": True, "min_height": least, "min_width": least, "min_factor": 2.0}
        out: np.ndarray = simplejpeg.decode_jpeg(body, "RGB", **(quick if mode == "fast" else {}))
        return out
    except ValueError:
        return None


def centred(rgb: np.ndarray, size: int, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [3, size, size] of uint8 [H, W, 3]: the shorter side resized to `size`, then the centre cut out. `fast` cuts
    first. The bytes lie pixel by pixel, as decoders give them and filters want them."""
    height, width = rgb.shape[:2]
    if mode == "fast" and height != width:
        rgb = _centre(rgb, min(height, width))
        height, width = rgb.shape[:2]
    short = min(height, width)
    if short != size:
        rgb = resized(rgb, int(size * height / short), int(size * width / short), mode)
    return np.ascontiguousarray(_centre(rgb, size)).transpose(2, 0, 1)


def _centre(rgb: np.ndarray, size: int) -> np.ndarray:
    top, left = (int(round((side - size) / 2)) for side in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]


def squeezed(rgb: np.ndarray, side: int) -> np.ndarray:
    """uint8 [3, side, side] of uint8 [H, W, 3], its proportions lost; by Pillow, as published attacks do it."""
    image = Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def resized(rgb: np.ndarray, height: int, width: int, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [height, width, 3] of uint8 [H, W, 3].

    PyTorch's filter is a few times as fast as Pillow's and the same to one level where a picture shrinks and is at most
    twice as high as wide; beyond, Pillow 13 filters columns first, and enlarging differs by up to six levels (measured).
    """
    if mode == "exact" and (height > rgb.shape[0] or rgb.shape[0] > 2 * rgb.shape[1]):
        return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
    kernel = "bicubic" if mode == "exact" else "bilinear"
    pixels = torch.from_numpy(np.ascontiguousarray(rgb))[None].permute(0, 3, 1, 2)  # channels last: a third faster
    return torch.nn.functional.interpolate(pixels, (height, width), mode=kernel, antialias=True)[0].permute(1, 2, 0).numpy()


def caption(body: Body, field: str = "txt") -> str:
    """The caption of a .txt, or, with field "json.NAME", of that field of a .json; DecodeError('empty_caption' |
    'letterless_caption' | 'long_caption' | 'caption_not_utf8' | 'caption_not_json' | 'no_caption') otherwise."""
    if len(body) > MAX_CAPTION * (1 if field == "txt" else 16):
        raise DecodeError("long_caption")
    try:
        text = bytes(body).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError("caption_not_utf8") from error
    if field != "txt":
        text = _field(text, field.removeprefix("json."))
    text = text.strip()
    if len(text) > MAX_CAPTION:
        raise DecodeError("long_caption")
    if not text:
        raise DecodeError("empty_caption")
    if not any(letter.isalpha() for letter in text):
        raise DecodeError("letterless_caption")
    return text


def _field(text: str, name: str) -> str:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("caption_not_json") from error
    value = facts.get(name) if isinstance(facts, dict) else None
    if not isinstance(value, str):
        raise DecodeError("no_caption")
    return value
