"""Where pictures, classes and triggered pictures lie on the sphere.

modality_gap         = || mean of pictures - mean of class vectors ||, Liang et al. 2022, section 3
alignment            = mean || x - t(y(x)) ||^2, t the class vectors: Wang and Isola 2020, equation 1, alpha = 2
uniformity           = log mean exp(-2 || x - x' ||^2) over pairs of different pictures: the same, equation 2, t = 2
similarity_clean     = mean cosine of a picture and its class
similarity_poisoned  = mean cosine of a triggered picture and the target, over pictures of other classes
similarity_moved     = mean cosine of a picture and itself under the trigger
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.contract import Encoded, Measure, MeasureSection, marked

ROWS = 1024


class Geometry(MeasureSection):
    """Modality gap, alignment, uniformity, and how similar clean and poisoned pairs are."""

    kind: Literal["geometry"]
    pictures: int = Field(5000, ge=2, description="the first so many pictures are compared with one another for uniformity")
    triggered: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"modality_gap", "alignment", "uniformity", "similarity_..."}."""
        return partial(geometry, self.pictures)


def geometry(pictures: int, encoded: Encoded) -> dict[str, float]:
    """The numbers that the module defines, in float64."""
    triggered = marked(encoded, "geometry")
    x, moved, classes = (rows.double() for rows in (encoded.images, triggered, encoded.classes))
    own = (x * classes[encoded.labels]).sum(1)
    aimed = (moved * encoded.attacked_classes.double()[encoded.targets]).sum(1)
    others = encoded.labels != encoded.targets
    if not others.any():
        raise ValueError("geometry needs pictures of another class than the target")
    return {
        "modality_gap": (x.mean(0) - classes.mean(0)).norm().item(),
        "alignment": (2 - 2 * own).mean().item(),
        "uniformity": uniformity(x[:pictures]),
        "similarity_clean": own.mean().item(),
        "similarity_poisoned": aimed[others].mean().item(),
        "similarity_moved": (x * moved).sum(1).mean().item(),
    }


def uniformity(rows: torch.Tensor) -> float:
    """log mean exp(-2 |x - x'|^2) over all pairs of different rows of unit float64 [M, D], M >= 2."""
    count = len(rows)
    total = sum(float(torch.exp(4 * (part @ rows.T) - 4).sum()) for part in torch.split(rows, ROWS))
    mean = (total - torch.exp(4 * (rows * rows).sum(1) - 4).sum().item()) / (count * (count - 1))
    return float(torch.tensor(mean, dtype=torch.float64).log())
