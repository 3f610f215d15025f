"""A stamp on pictures, and how a picture tower embeds the stamped ones, with gradients to the stamp: the one door to the
gradients of pixels.

    x' = (1 - m) x + m p        picture x [3, H, W], mask m [H, W] and pattern p [3, H, W], all on the scale 0-1

The same on bytes is the trigger `tensor` with place: full, which reads what `write` leaves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from data.refusal import UserError
from engine.models.towers import Towers
from records.json_file import write_whole


class Stamp(NamedTuple):
    """A pattern and how strongly it covers each pixel, both in [0, 1]; either may carry a gradient."""

    mask: torch.Tensor  # [H, W]
    pattern: torch.Tensor  # [3, H, W]

    def on(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, 3, H, W] on the scale of bytes, not rounded, in the pattern's type: the pictures, uint8, with the stamp."""
        pixels = pictures.to(self.pattern.dtype)
        return pixels + self.mask * (255 * self.pattern - pixels)

    def marked(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, H, W]: the same, rounded."""
        return self.on(pictures).detach().round().clamp(0, 255).to(torch.uint8)

    @property
    def size(self) -> torch.Tensor:
        """0-d: the sum of the mask over three channels, from 0 to 3 H W; DECREE's L1 norm."""
        return 3 * self.mask.sum()

    def write(self, path: Path) -> None:
        """Writes a .safetensors file that the trigger `tensor` reads, whole or not at all."""
        from safetensors.torch import save

        parts = {"trigger": self.pattern, "mask": self.mask}
        body = save({name: part.detach().float().clamp(0, 1).cpu().contiguous() for name, part in parts.items()})
        write_whole(path, body)


class Encode(Protocol):
    """Pictures uint8 [n, 3, H, W], with a stamp or without, to unit rows [n, D], with gradients to the stamp."""

    def __call__(self, pictures: torch.Tensor, stamp: Stamp | None = None) -> torch.Tensor: ...


def placed(patch: Stamp, size: tuple[int, int], at: tuple[int, int] | None = None) -> Stamp:
    """A smaller stamp as one of pictures of (H, W) = `size`, its corner at (top, left), by default in the middle; gradients
    pass. UserError if it does not fit."""
    (height, width), (h, w) = size, patch.mask.shape
    if h > height or w > width:
        raise UserError(
            f"a stamp of {h} x {w} pixels is larger than the model's pictures of {height} x {width}; give a smaller one"
        )
    top, left = at or ((height - h) // 2, (width - w) // 2)
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise UserError(
            f"a stamp of {h} x {w} pixels at ({top}, {left}) reaches over the edge of the model's pictures of "
            f"{height} x {width}; put it at most at ({height - h}, {width - w})"
        )
    around = (left, width - w - left, top, height - h - top)
    return Stamp(F.pad(patch.mask, around), F.pad(patch.pattern, around))


@contextmanager
def encoding(towers: Towers) -> Iterator[Encode]:
    """Within it the towers are frozen and in evaluation mode, and embed stamped pictures; the backward pass belongs inside
    as well, since towers that recompute their blocks run them again there."""
    with towers.frozen(), torch.enable_grad():
        yield partial(_rows, towers)


def _rows(towers: Towers, pictures: torch.Tensor, stamp: Stamp | None = None) -> torch.Tensor:
    if stamp is not None and (stamp.mask.shape != pictures.shape[-2:] or stamp.pattern.shape != pictures.shape[1:]):
        raise ValueError(f"a stamp of {list(stamp.mask.shape)} and {list(stamp.pattern.shape)} on {list(pictures.shape)}")
    rows, _ = towers(pictures if stamp is None else stamp.on(pictures), None)
    return torch.as_tensor(rows)
