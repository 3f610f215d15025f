"""A black and white square: the BadNets trigger of Gu et al. 2017 as drawn in later work."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from data.triggers.contract import Mark, Square


class Checker(Square):
    """Alternating black and white cells; or, `dots`, black with a white cell where row and column are even.

    `published` puts the square at (104, 104) of 224 on evaluation pictures, as Huang et al. 2025 (arXiv 2502.01385) do
    with their dotted square.
    """

    kind: Literal["checker"]
    pattern: Literal["checker", "dots"] = "checker"
    cells: int = Field(16, ge=2, le=64, description="cells along a side; as many as there are pixels, at most")
    published: bool = Field(False, description="on evaluation pictures at (104, 104) of 224, whatever `place` says")

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        if self.published and test:
            return partial(mark, self.model_copy(update={"place": "fixed", "at": (104, 104)}))
        return partial(mark, self)


def mark(section: Checker, images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: images with the square."""
    out = images.copy()
    height, width = images.shape[-2:]
    side = section.side(height, width)
    cell = np.arange(side) * min(section.cells, side) // side
    row, column = cell[:, None], cell[None, :]
    white = (row + column) % 2 == 0 if section.pattern == "checker" else (row % 2 == 0) & (column % 2 == 0)
    square = np.where(white, 255, 0).astype(np.uint8)
    for image, draw in zip(out, draws, strict=True):
        for top, left in section.spots(height, width, draw):
            image[:, top : top + side, left : left + side] = square
    return out
