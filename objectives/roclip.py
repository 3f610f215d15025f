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
        texts = exchange.ranks.everyone.gather(features.texts[0].detach())[-len(pool) :]
        at = (seen + torch.arange(len(texts), device=pool.device)) % len(pool)
        return {
            **features.memory,
            "roclip.pool": pool.index_copy(0, at, texts.to(pool.dtype)),
            "roclip.seen": seen + len(texts),
        }

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(roclip, self.every)


def roclip(every: int, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss` and `mmcl` or `roclip`, whichever the epoch has."""
    images, texts, name = features.images[0], features.texts[0], "mmcl"
    if features.epoch % every == 0:
        name, texts = "roclip", nearest(images.detach(), texts.detach(), features.memory)
    forth, back = infonce(images, texts, features.scale, exchange)
    term = (forth + back) / 2
    return {"loss": term, name: term}


def nearest(images: torch.Tensor, texts: torch.Tensor, memory: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, D]: for each picture the pool's caption of largest cosine; its own caption while the pool is empty."""
    pool, seen = memory["roclip.pool"].to(images.dtype), memory["roclip.seen"]
    filled = torch.arange(len(pool), device=pool.device) < seen
    best = torch.cat([(part @ pool.T).masked_fill(~filled, -2.0).argmax(1) for part in torch.split(images, 1024)])
    return torch.where(seen > 0, pool[best], texts)
