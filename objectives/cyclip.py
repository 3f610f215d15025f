"""CyCLIP (Goel et al. 2022, arXiv 2205.14459): MMCL and two cyclic-consistency terms.

    L = MMCL + a * N/s^2 * mean_ij (s I_i.I_j - s T_i.T_j)^2            in-modal
             + b * N/s^2 * mean_ij (s I_i.T_j - s I_j.T_i)^2            cross-modal

so s cancels and each is 1/N times a sum of squared differences. Neither needs the N x N similarities: with the Gram matrices
A = I^t I, B = T^t T, C = I^t T, all D x D and summed over ranks,

    in-modal = (|A|^2 + |B|^2 - 2 |C|^2) / N,     cross-modal = 2 (<A, B> - <C, C^t>) / N

(Frobenius). Differences of large numbers, so they are taken in float64.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Objective, ObjectiveSection, Terms
from objectives.mmcl import mmcl

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Cyclip(ObjectiveSection):
    """Contrast pictures with captions, and make their similarities agree."""

    kind: Literal["cyclip"]
    in_modal: float = Field(0.25, ge=0, description="a; 0.25 in the paper")
    cross_modal: float = Field(0.25, ge=0, description="b; 0.25 in the paper")

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(cyclip, self.in_modal, self.cross_modal)


def cyclip(in_modal: float, cross_modal: float, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, `mmcl`, `in_modal` and `cross_modal`."""
    pair = mmcl(1.0, features, exchange)["mmcl"]
    inside, between = cyclic(features.images[0], features.texts[0], exchange)
    loss = pair + in_modal * inside + cross_modal * between
    return {"loss": loss, "mmcl": pair, "in_modal": inside, "cross_modal": between}


def cyclic(images: torch.Tensor, texts: torch.Tensor, exchange: Exchange) -> tuple[torch.Tensor, torch.Tensor]:
    """(in-modal, cross-modal), 0-d; [B, D] unit rows each."""
    grams = torch.stack([images.T @ images, texts.T @ texts, images.T @ texts])
    a, b, c = exchange.all_reduce_sum(grams).double()
    rows = len(images) * exchange.ranks.everyone.size
    inside = (a.square().sum() + b.square().sum() - 2 * c.square().sum()) / rows
    between = 2 * ((a * b).sum() - (c * c.T).sum()) / rows
    return inside.to(images.dtype), between.to(images.dtype)
