"""A slight bending of the picture: WaNet (Nguyen & Tran 2021, arXiv 2102.10369)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from data.seeding import generator
from data.triggers.contract import AT_ONCE, REFERENCE, Mark, TriggerSection


class Warp(TriggerSection):
    """Bilinear sampling along a smooth random field: k x k control points, scaled to a mean size of 1, enlarged bicubically;
    points move by strength / 2 pixels of a side of 224, on average.

    `published` is what CleanCLIP's code does: the picture is squeezed to 224 x 224 and k is 224, so that the field is
    not smooth but jitter pixel by pixel (strength 1 there; 0.6 in the code of arXiv 2311.14948).
    """

    kind: Literal["warp"]
    zero: ClassVar[str | None] = "strength"
    strength: float = Field(0.5, ge=0)
    grid: int = Field(4, ge=2, le=REFERENCE, description="control points along a side")
    noise: float = Field(0.0, ge=0, description="random jitter of each picture on top, in pixels of 224: WaNet's noise mode")
    published: bool = Field(False, description="exactly as CleanCLIP's code: squeezed to 224, one control point a pixel")

    @property
    def squash(self) -> int | None:
        return REFERENCE if self.published else None

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function; `seed` fixes the field."""
        return partial(mark, self, seed)


def mark(section: Warp, seed: int, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images bent."""
    if not section.strength and not section.noise:
        return images.copy()
    height, width = images.shape[-2:]
    if section.published:
        field = _field(REFERENCE, seed, height, width)[0].numpy()
        return np.stack([published(image, field, section.strength) for image in images])
    places = _places(section.strength, section.grid, seed, height, width)
    out = np.empty(images.shape, np.uint8)
    for image, into, draw in zip(images, out, draws, strict=True):
        shift = _jitter(section.noise, draw, height, width) if section.noise else None
        _sample(image, places if shift is None else places + shift, into)
    return out


def _jitter(size: float, draw: int, height: int, width: int) -> torch.Tensor:
    """float32 [H, W, 2]: what a picture's own noise adds to the places."""
    jitter = generator(draw, "warp").uniform(-2, 2, (height, width, 2)).astype(np.float32)
    return size / REFERENCE * torch.from_numpy(jitter)


def published(image: np.ndarray, field: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """uint8 like image: what CleanCLIP's apply_trigger gives for its field, float32 [H, W, 2] of mean size 1; its pictures
    are real numbers, cut off to bytes."""
    height, width = image.shape[-2:]
    grid = _identity(height, width) + strength * torch.from_numpy(field)[None] / height
    real = torch.from_numpy(image).float()[None] / 255
    out = torch.nn.functional.grid_sample(real, grid.clamp(-1, 1), mode="bilinear", padding_mode="zeros", align_corners=True)
    bytes_: np.ndarray = out[0].mul(255).byte().numpy()
    return bytes_


def _sample(image: np.ndarray, places: torch.Tensor, into: np.ndarray) -> None:
    """Puts the picture at these places into uint8 [3, H, W]; beyond its edge what is on it. In stripes of rows, since fresh
    memory costs as much as the work."""
    real = torch.from_numpy(image.astype(np.float32))[None]
    rows = max(1, AT_ONCE // (3 * image.shape[2]))
    for top in range(0, image.shape[1], rows):
        part = places[:, top : top + rows]
        sampled = torch.nn.functional.grid_sample(real, part, mode="bilinear", padding_mode="border", align_corners=True)
        values = sampled[0].numpy()
        into[:, top : top + rows] = np.rint(values, out=values)


@lru_cache(maxsize=8)
def _places(strength: float, points: int, seed: int, height: int, width: int) -> torch.Tensor:
    """float32 [1, H, W, 2]: where each point of a bent picture comes from; kept, as it costs more than a picture."""
    return _identity(height, width) + strength / REFERENCE * _field(points, seed, height, width)


@lru_cache(maxsize=8)
def _identity(height: int, width: int) -> torch.Tensor:
    """float32 [1, H, W, 2]: every point's own place, x before y."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y], -1)[None]


@lru_cache(maxsize=8)
def _field(points: int, seed: int, height: int, width: int) -> torch.Tensor:
    """float32 [1, H, W, 2] whose control points have mean size 1."""
    drawn = torch.from_numpy(generator(seed, "warp").uniform(-1, 1, (1, 2, points, points)).astype(np.float32))
    drawn = drawn / drawn.abs().mean()
    field = torch.nn.functional.interpolate(drawn, (height, width), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1).contiguous()
