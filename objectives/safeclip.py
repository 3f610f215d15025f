"""SafeCLIP (Yang et al. 2023, arXiv 2310.05862): pictures and captions are contrasted only where they look as if they belong
together; the other pairs are contrasted within their modality.

    epochs 1 ... u        L = U over all pairs
    epoch u + 1           L = MMCL, at `slow` of the rate
    after                 L = 1/2 [CE(s I T'^t) + CE(s T I'^t)] over safe pairs + U over risky ones

    U = 1/2 [CE(s P I'^t) + CE(s Q T'^t)]       P_i, Q_i: of the pools of pictures and captions the rows nearest to I_i, T_i

I', T': embeddings of the augmented pictures and captions; the pools hold the last ones seen, first in, first out, and are
without gradient. Before each epoch after u + 1 the cosines of all pairs decide which are safe
(engine/training/safe_pairs.py): at first those that a mixture of two Gaussians gives to its upper one with `posterior`, then
so many of the largest, `growth` of all pairs more in each epoch, up to `most` of them. The published code takes the two
parts in passes of their own, risky pairs first; here a batch holds both.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Need, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce
from objectives.pool import nearest, pushed

if TYPE_CHECKING:
    from objectives.exchange import Exchange

POOLS = {"safeclip.pictures": "images", "safeclip.captions": "texts"}  # and the features that they hold
SEEN = "safeclip.seen"


class SafeClip(ObjectiveSection):
    """Contrast safe pairs with each other, pictures and captions of the others with their own neighbours."""

    kind: Literal["safeclip"]
    unimodal: int = Field(5, ge=0, description="u: the first epochs, within modalities alone")
    slow: float = Field(0.01, gt=0, le=1, description="of the rate, in the epoch after those; 5e-6 of 5e-4 as published")
    posterior: float = Field(0.9, gt=0, lt=1, description="of the mixture's upper Gaussian, from which on a pair is safe")
    growth: float = Field(0.01, ge=0, le=1, description="of all pairs, that become safe in each later epoch")
    most: float = Field(0.85, gt=0, le=1, description="of all pairs, up to which that goes on")
    pool: int = Field(256, ge=1, description="pictures and captions remembered; 44,032 in the code of arXiv 2502.01385")
    needs: ClassVar[frozenset[Need]] = frozenset({"flags"})

    @property
    def views(self) -> tuple[int, int]:
        """Two of both."""
        return 2, 2

    @property
    def warmup(self) -> int:
        """The epochs before pairs are told apart."""
        return self.unimodal + 1

    @property
    def least_epochs(self) -> int:
        """One in which pairs are told apart."""
        return self.warmup + 1

    def rate_share(self, epoch: int) -> float:
        """`slow` in the first epoch across modalities."""
        return self.slow if epoch == self.warmup else 1.0

    def memory(self, width: int) -> dict[str, torch.Tensor]:
        """The pools, and how many pairs they have ever got."""
        return {name: torch.zeros(self.pool, width) for name in POOLS} | {SEEN: torch.zeros(1, dtype=torch.int64)}

    def remember(self, features: Features, exchange: Exchange) -> dict[str, torch.Tensor]:
        """The pools with this batch's pictures and captions in place of the oldest."""
        seen, out, count = features.memory[SEEN], dict(features.memory), 0
        for name, of in POOLS.items():
            rows = exchange.ranks.everyone.gather(getattr(features, of)[0].detach())
            out[name], count = pushed(features.memory[name], seen, rows), len(rows)
        return {**out, SEEN: seen + min(count, self.pool)}

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(safeclip, self.unimodal)


def safeclip(unimodal: int, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, and of `mmcl` and `within` those that the epoch has."""
    images, texts, scale = features.images, features.texts, features.scale
    if features.epoch == unimodal + 1:
        forth, back = infonce(images[0], texts[0], scale, exchange)
        pair = (forth + back) / 2
        return {"loss": pair, "mmcl": pair}
    if features.epoch <= unimodal:
        within = _within(features, exchange, None)
        return {"loss": within, "within": within}
    assert features.flags is not None
    safe = ~features.flags
    of_images, _ = infonce(images[0], texts[1], scale, exchange, safe, "forth")
    of_texts, _ = infonce(texts[0], images[1], scale, exchange, safe, "forth")
    pair, within = (of_images + of_texts) / 2, _within(features, exchange, features.flags)
    return {"loss": pair + within, "mmcl": pair, "within": within}


def _within(features: Features, exchange: Exchange, kept: torch.Tensor | None) -> torch.Tensor:
    """0-d: U over the pairs that are kept."""
    parts = []
    for name, of in POOLS.items():
        first, second = getattr(features, of)
        near = nearest(first.detach(), features.memory[name], features.memory[SEEN], first.detach())
        parts.append(infonce(near, second, features.scale, exchange, kept, "forth")[0])
    return torch.stack(parts).mean()
