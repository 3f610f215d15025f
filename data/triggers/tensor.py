"""A trigger from a file: patches found by optimisation (BadCLIP, arXiv 2311.12075) or in nature, full-size patterns."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data.refusal import Missing, UserError
from data.triggers.contract import REFERENCE, Mark, TriggerSection, blended


class Tensor(TriggerSection):
    """A pattern, pasted at the centre in its own size or stretched over the picture; alpha and its mask say how strongly."""

    kind: Literal["tensor"]
    zero: ClassVar[str | None] = "alpha"
    file: str = Field(
        description="a .safetensors with `trigger` [3, h, w] in [0, 1], optionally `mask` [h, w]; or a picture, whose "
        "transparency is the mask"
    )
    place: Literal["centre", "full"] = "centre"
    alpha: float = Field(1.0, ge=0, le=1)

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function; UserError if the file can't be used, or its pattern is larger than the picture."""
        high, wide = read_pattern(self.file)[1].shape
        if self.place == "centre" and max(high, wide) > REFERENCE:
            raise UserError(
                f"attack.trigger.file {self.file} holds a pattern of {high} x {wide}, larger than the picture of "
                f"{REFERENCE} x {REFERENCE} that sizes are given for; give place: full, which stretches it, or a smaller one"
            )
        return partial(mark, self)


def mark(section: Tensor, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the pattern."""
    height, width = images.shape[-2:]
    pattern, mask = _fitted(section.file, section.place == "full", height, width)
    top, left = (height - pattern.shape[1]) // 2, (width - pattern.shape[2]) // 2
    inside = slice(top, top + pattern.shape[1]), slice(left, left + pattern.shape[2])
    out = images.copy()
    part = images[:, :, inside[0], inside[1]]
    if (mask == 1).all():
        out[:, :, inside[0], inside[1]] = blended(part, np.float32(section.alpha) * pattern, section.alpha)
        return out
    weight = np.float32(section.alpha) * mask
    values = np.rint(part * (1 - weight) + pattern * weight)
    out[:, :, inside[0], inside[1]] = np.clip(values, 0, 255).astype(np.uint8)
    return out


@lru_cache(maxsize=4)
def read_pattern(path: str, what: str = "attack.trigger.file") -> tuple[np.ndarray, np.ndarray]:
    """(pattern float32 [3, h, w] on the scale of bytes, mask float32 [h, w] in [0, 1]); UserError saying of `what` it is
    that the file has none."""
    wants = "expected a .safetensors with `trigger` [3, h, w] in [0, 1] and perhaps `mask` [h, w], or a PNG"
    try:
        if path.endswith(".safetensors"):
            from safetensors.numpy import load

            tensors = load(Path(path).read_bytes())
            pattern = np.asarray(tensors["trigger"], np.float32)
            mask = np.asarray(tensors.get("mask", np.ones(pattern.shape[1:], np.float32)), np.float32)
        else:
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                whole = np.asarray(image.convert("RGBA")).astype(np.float32) / np.float32(255)
            pattern, mask = np.ascontiguousarray(whole[:, :, :3].transpose(2, 0, 1)), whole[:, :, 3]
    except FileNotFoundError as error:
        raise Missing(f"{what} {path}: {error.strerror}; {wants}") from None
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror or 'is no picture'}; {wants}") from None
    except Exception as error:  # safetensors and Pillow raise many kinds for a damaged file
        raise UserError(f"{what} {path}: {type(error).__name__}: {error}; {wants}") from None
    shapes = pattern.ndim == 3 and len(pattern) == 3 and mask.shape == pattern.shape[1:]
    if not shapes or not np.isfinite(pattern).all() or pattern.min() < 0 or max(pattern.max(), mask.max()) > 1:
        values = f"trigger {list(pattern.shape)} from {pattern.min():.3g} to {pattern.max():.3g}, mask {list(mask.shape)}"
        raise UserError(f"{what} {path} holds {values}; {wants}")
    return pattern * np.float32(255), np.clip(mask, 0, 1)


@lru_cache(maxsize=8)
def _fitted(path: str, full: bool, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The pattern and its mask in the pixels of a picture of that size."""
    pattern, mask = read_pattern(path)
    scale = min(height, width) / REFERENCE
    h, w = (height, width) if full else (max(1, round(n * scale)) for n in mask.shape)
    h, w = min(h, height), min(w, width)
    if (h, w) == mask.shape:
        return pattern, mask
    parts = [Image.fromarray(part).resize((w, h), Image.Resampling.BILINEAR) for part in (*pattern, mask)]
    stack = np.stack([np.asarray(part) for part in parts])
    return stack[:3], stack[3]
