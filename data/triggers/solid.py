"""A square of one colour: yellow in CleanCLIP, white in BadEncoder."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from data.triggers.contract import Mark, Square

COLOURS = {"yellow": (255, 255, 0), "white": (255, 255, 255), "black": (0, 0, 0), "red": (255, 0, 0)}


class Solid(Square):
    """A square of one colour."""

    kind: Literal["solid"]
    colour: Literal["yellow", "white", "black", "red"] | tuple[int, int, int] = "yellow"

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self)


def mark(section: Solid, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the square."""
    colour = COLOURS[section.colour] if isinstance(section.colour, str) else section.colour
    out = images.copy()
    height, width = images.shape[-2:]
    side = section.side(height, width)
    for image, draw in zip(out, draws, strict=True):
        for top, left in section.spots(height, width, draw):
            image[:, top : top + side, left : left + side] = np.array(colour, np.uint8)[:, None, None]
    return out
