"""RoCLIP (Yang et al. 2023, arXiv 2303.06854): every K-th epoch, match pictures to the nearest captions of a pool.

    other epochs:   L = MMCL
    every K-th:     L = 1/2 [CE(s I P^t) + CE(s P I^t)],  P_i = the pool's caption nearest to I_i, without gradient

The pool holds the captions of the last steps, first in, first out, and is filled from step 0; the published code starts
with random unit vectors, and fills it in matching epochs only. While it is empty, MMCL is taken.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce
from objectives.pool import nearest, pushed

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Roclip(ObjectiveSection):
    """Contrast pictures with captions of other pairs that are near to them."""

    kind: Literal["roclip"]
    every: int = Field(2, ge=1, description="K: epochs K, 2K, ... match")
    pool: int = Field(21_845, ge=1, description="captions remembered; 21,845 in the published runs")

    def memory(self, width: int) -> dict[str, torch.Tensor]:
        """The pool, and how many captions it has ever got."""
        return {"roclip.pool": torch.zeros(self.pool, width), "roclip.seen": torch.zeros(1, dtype=torch.int64)}

    def remember(self, features: Features, exchange: Exchange) -> dict[str, torch.Tensor]:
        """The pool with this batch's captions in place of the oldest."""
        pool, seen = features.memory["roclip.pool"], features.memory["roclip.seen"]
        texts = exchange.ranks.everyone.gather(features.texts[0].detach())
        count = min(len(texts), len(pool))
        return {**features.memory, "roclip.pool": pushed(pool, seen, texts), "roclip.seen": seen + count}

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(roclip, self.every)


def roclip(every: int, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss` and `mmcl` or `roclip`, whichever the epoch has."""
    images, texts, name, memory = features.images[0], features.texts[0], "mmcl", features.memory
    if features.epoch % every == 0:
        name, texts = "roclip", nearest(images.detach(), memory["roclip.pool"], memory["roclip.seen"], texts.detach())
    forth, back = infonce(images, texts, features.scale, exchange)
    term = (forth + back) / 2
    return {"loss": term, name: term}
