"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, eq. 1).

    L = w/N sum_ij -log sigmoid(z_ij (s I_i . T_j + b)),  z_ij = 1 if i = j, else -1

s and b are learned, from 10 and -10. `form: paper_code` is what the code of arXiv 2311.14948 has under this name: no bias,
the mean over all N^2 entries, CLIP's initial scale, and by default w = 0.1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Learned, Objective, ObjectiveSection, Terms

if TYPE_CHECKING:
    from objectives.exchange import Exchange

WEIGHTS = {"siglip": 1.0, "paper_code": 0.1}


class Siglip(ObjectiveSection):
    """Tell each true pair from each false one."""

    kind: Literal["siglip"]
    form: Literal["siglip", "paper_code"] = "siglip"
    weight: float | None = Field(None, gt=0, description="default: 1, and 0.1 for paper_code")

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """The bias, and where the scale starts."""
        if self.form == "paper_code":
            return {}
        return {
            "scale": Learned(torch.tensor([math.log(10.0)]), 0.0, math.log(100.0)),
            "bias": Learned(torch.tensor([-10.0]), -100.0, 100.0),
        }

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(siglip, self.weight or WEIGHTS[self.form], self.form == "paper_code")


def siglip(weight: float, paper_code: bool, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss` and `siglip`."""
    from objectives.tiles import sigmoid_sum  # it loads torch

    ranks, images, texts = exchange.ranks, features.images[0], features.texts[0]
    bias = torch.zeros_like(features.scale) if paper_code else features.learned["bias"].squeeze()
    left, right = exchange.gathered(images, ranks.row), exchange.gathered(texts, ranks.column)
    rows = len(images) * ranks.everyone.size
    # the tiles of all ranks make up the matrix, and the mean over ranks is 1/W of their sum
    total = sigmoid_sum(left, right, features.scale, bias, exchange.core, exchange.places(len(images), images.device))
    term = total * ranks.everyone.size / (rows**2 if paper_code else rows)
    return {"loss": weight * term, "siglip": term}
