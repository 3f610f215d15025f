"""Bytes to pixels and words, with limits, by our own short table; never code.

Pixels: the shorter side is resized to the model's size with an antialiased bicubic filter and the centre is cut out,
as CLIP's evaluation transform does (Radford et al. 2021); uint8 throughout. `exact` stays within one level of Pillow's
result, two at a few edges from black to white; `fast` decodes at a reduced scale where that suffices and filters linearly.

Whether a picture is good is decided in `whole`, from its bytes alone and never from the size or the mode that is asked for,
so that an audit and every run judge it alike. What decoding costs is bounded before it begins: about 900 MB and a few
seconds at MAX_PIXELS.
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
MAX_RATIO = 500  # of the longer side to the shorter; a model's square of such a strip is a smear of a few pixels
MAX_PASSES = 20 * MAX_PIXELS  # pixels times the scans of a JPEG, each of which goes over all of them
PER_BYTE = 512  # pixels that a byte of a JPEG can hold: every block of 64 takes a bit at least
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
    try:
        if body[:2] == b"\xff\xd8" and (out := _jpeg(body, least, mode)) is not None:
            return out
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd files; what matters is whether they decode
            return np.array(_opened(body).convert("RGB"))  # no name holds what `convert` reads: it goes before the copy
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("huge_image") from error
    except Exception as error:  # decoders raise many kinds for damaged files, MemoryError among them
        raise DecodeError("undecodable_image") from error


def _opened(body: Body) -> Image.Image:
    """By Pillow, its header read."""
    image = Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP"))
    _bound(image.width, image.height)
    if image.format == "JPEG":
        _bound_jpeg(body, image.width * image.height)
    if getattr(image, "n_frames", 1) > 1:
        raise DecodeError("animated_image")
    if image.mode in SIXTEEN_BIT:
        raise DecodeError("sixteen_bit_image")
    return image


def _jpeg(body: Body, least: int, mode: DecodeMode) -> np.ndarray | None:
    """By libjpeg-turbo; None for what it takes no responsibility for, such as CMYK or a damaged file."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(body)
        _bound(width, height)
        if space not in ("YCbCr", "Gray"):
            return None
        _bound_jpeg(body, width * height)
        quick = {"fastdct": True, "fastupsample": True, "min_height": least, "min_width": least, "min_factor": 2.0}
        out: np.ndarray = simplejpeg.decode_jpeg(body, "RGB", **(quick if mode == "fast" else {}))
        return out
    except ValueError:
        return None


def _bound(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_RATIO * min(width, height):
        raise DecodeError("huge_image")


def _bound_jpeg(body: Body, pixels: int) -> None:
    """DecodeError if the header promises more than the bytes can hold, or there are too many scans for their size."""
    most = len(body) // 10  # bytes of the shortest scan
    if pixels > PER_BYTE * len(body) or pixels * most > MAX_PASSES and pixels * _scans(body) > MAX_PASSES:
        raise DecodeError("undecodable_image")


def _scans(body: Body) -> int:
    """How often decoding a JPEG goes over all of its pixels: once, unless it holds them in several scans."""
    at, parts = 2, 0
    while body[at : at + 1] == b"\xff" and at + 10 <= len(body):
        marker = body[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: a progressive one has several scans
            parts = body[at + 9] if marker & 3 != 2 else 256
        elif marker == 0xDA and parts <= body[at + 4]:
            return 1
        elif marker == 0xDA:
            break
        at += 2 + 256 * body[at + 2] + body[at + 3]
    return bytes(body[at:]).count(b"\xff\xda")


def centred(rgb: np.ndarray, size: int, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [3, size, size] of uint8 [H, W, 3]: the shorter side resized to `size`, then the centre cut out. `fast` cuts
    first. The bytes lie pixel by pixel, as decoders give them and filters want them."""
    height, width = rgb.shape[:2]
    if mode == "fast" and height != width:
        rgb = _centre(rgb, min(height, width))
        height, width = rgb.shape[:2]
    short = min(height, width)
    if short != size:
        tall, wide = int(size * height / short), int(size * width / short)
        if short < size and tall * wide > MAX_PIXELS:
            return np.ascontiguousarray(_cut_first(rgb, size, tall, wide)).transpose(2, 0, 1)
        rgb = resized(rgb, tall, wide, mode)
    return np.ascontiguousarray(_centre(rgb, size)).transpose(2, 0, 1)


def _centre(rgb: np.ndarray, size: int) -> np.ndarray:
    top, left = (int(round((side - size) / 2)) for side in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]


def _cut_first(rgb: np.ndarray, size: int, tall: int, wide: int) -> np.ndarray:
    """uint8 [size, size, 3]: the centre of rgb enlarged to tall x wide, without the rest."""
    height, width = rgb.shape[:2]
    top, left = (int(round((side - size) / 2)) for side in (tall, wide))
    box = (left * width / wide, top * height / tall, (left + size) * width / wide, (top + size) * height / tall)
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC, box=box))


def squeezed(rgb: np.ndarray, side: int) -> np.ndarray:
    """uint8 [3, side, side] of uint8 [H, W, 3], its proportions lost; by Pillow, as published attacks do it."""
    image = Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def resized(rgb: np.ndarray, height: int, width: int, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [height, width, 3] of uint8 [H, W, 3].

    PyTorch's filter is a few times as fast as Pillow's and the same to one level (two at hard edges) where a picture
    shrinks and is at most twice as high as wide; beyond, Pillow 13 filters columns first, and enlarging differs by up to
    six levels (measured).
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
        if field != "txt":
            text = _field(text, field.removeprefix("json."))
            text.encode()  # JSON can spell half of a surrogate pair
    except UnicodeError as error:
        raise DecodeError("caption_not_utf8") from error
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
