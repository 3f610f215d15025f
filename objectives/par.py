"""Perturb and Recover (PAR; Singh et al. 2024, arXiv 2412.00727): clean by moving away from the poisoned model.

    L = MMCL - 1/2 (1[d_v <= tau] d_v + 1[d_t <= tau] d_t)

d_v, d_t: mean over the batch of |I - I0|^2 and |T - T0|^2, with I0, T0 the unit embeddings of the frozen poisoned model; at
most 4. The published code does not train the scale.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Need, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Par(ObjectiveSection):
    """Contrast pictures with captions, and push both towers away from where they started."""

    kind: Literal["par"]
    tau: float = Field(2.15, ge=0, le=4, description="squared distance beyond which a tower is pushed no further")
    learn_scale: bool = Field(False, description="whether the scale is trained; not in the published code")
    needs: ClassVar[frozenset[Need]] = frozenset({"start"})

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(par, self.tau, self.learn_scale)


def par(tau: float, learn_scale: bool, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, `mmcl`, `away_images` (d_v) and `away_texts` (d_t)."""
    assert features.start is not None
    scale = features.scale if learn_scale else features.scale.detach()
    forth, back = infonce(features.images[0], features.texts[0], scale, exchange)
    pair = (forth + back) / 2
    now = (features.images[0], features.texts[0])
    away = [exchange.mean((a - b).square().sum(1)) for a, b in zip(now, features.start, strict=True)]
    push = sum((torch.where(d <= tau, d, 0) for d in away), torch.zeros_like(pair))
    return {"loss": pair - push / 2, "mmcl": pair, "away_images": away[0], "away_texts": away[1]}
