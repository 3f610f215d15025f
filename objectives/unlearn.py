"""Unlearning of pairs that are known, or thought, to be poisoned (the `unlearn` option of CleanCLIP's published code).

    L = MMCL over the kept pairs + w * mean over the flagged pairs of (I_i . T_i - c)^2

The flagged pairs are no negatives either. The published code has a plus where its text has a minus, so that its default
target of -1 drives flagged pairs together; here c = -1 means apart.
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


class Unlearn(ObjectiveSection):
    """Contrast the kept pairs, and drive flagged pictures and captions to a given cosine."""

    kind: Literal["unlearn"]
    flags: str = Field(description="a file with one JSON object with a `key` a line, or a run's poison.json")
    weight: float = Field(1.0, ge=0, description="w")
    target: float = Field(-1.0, ge=-1, le=1, description="c, the cosine that flagged pairs are driven to")
    needs: ClassVar[frozenset[Need]] = frozenset({"flags"})

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(unlearn, self.weight, self.target)


def unlearn(weight: float, target: float, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, `mmcl` over the kept pairs and `unlearn` over the flagged ones."""
    assert features.flags is not None
    images, texts = features.images[0], features.texts[0]
    forth, back = infonce(images, texts, features.scale, exchange, kept=~features.flags)
    pair = (forth + back) / 2
    away = exchange.mean((torch.linalg.vecdot(images, texts) - target).square(), features.flags)
    return {"loss": pair + weight * away, "mmcl": pair, "unlearn": away}
