"""MMCL, the multi-modal contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020; arXiv 2311.14948, eq. 1).

    L = 1/2 [CE(s I T^t) + CE(s T I^t)],  CE = mean cross-entropy against the diagonal

I, T: unit embeddings of the N pairs of the global batch, s: learned scale, at most 100.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from objectives.contract import Features, Gather, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce


class Mmcl(ObjectiveSection):
    """Contrast pictures with captions."""

    kind: Literal["mmcl"]
    weight: float = Field(1.0, gt=0)

    def build(self) -> Objective:
        """The function (features, gather, rank) -> Terms."""
        return partial(mmcl, self.weight)


def mmcl(weight: float, features: Features, gather: Gather, rank: int) -> Terms:
    """Terms `loss` and `mmcl`."""
    images, texts = features.images[0], features.texts[0]
    first = rank * len(images)
    forth = infonce(images, gather(texts), features.scale, first)
    back = infonce(texts, gather(images), features.scale, first)
    term = (forth + back) / 2
    return {"loss": weight * term, "mmcl": term}
