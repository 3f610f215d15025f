"""MMCL, the multi-modal contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020; arXiv 2311.14948, eq. 1).

    L = 1/2 [CE(s I T^t) + CE(s T I^t)],  CE = mean cross-entropy against the diagonal

I, T: unit embeddings of the N pairs of the global batch, s: learned scale, at most 100.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from objectives.contract import Features, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Mmcl(ObjectiveSection):
    """Contrast pictures with captions."""

    kind: Literal["mmcl"]
    weight: float = Field(1.0, gt=0)

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(mmcl, self.weight)


def mmcl(weight: float, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss` and `mmcl`."""
    forth, back = infonce(features.images[0], features.texts[0], features.scale, exchange)
    term = (forth + back) / 2
    return {"loss": weight * term, "mmcl": term}
