"""MMCL + SSL: contrast across modalities, and within each modality against an augmented view.

    L = a * MMCL + w * 1/2 [CE(s I I'^t) + CE(s T T'^t)]

I', T': embeddings of the augmented pictures and captions. One-way: original queries, augmented keys, one shared scale.
The same loss pre-trains (SLIP-like, arXiv 2112.12750, with InfoNCE in both modalities) and cleans (CleanCLIP, Bansal
et al. 2023, arXiv 2303.03323, eq. 4; arXiv 2311.14948, eq. 3): `mmcl_ssl` and `cleanclip` are two names of one thing.
"""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from objectives.contract import Features, Gather, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce
from objectives.mmcl import mmcl


class MmclSsl(ObjectiveSection):
    """Contrast pictures with captions, and each with its own augmented view."""

    kind: Literal["mmcl_ssl", "cleanclip"]
    across: float = Field(1.0, ge=0, description="weight of the picture-caption term")
    within: float = Field(1.0, ge=0, description="weight of the picture-picture and caption-caption term")
    views: ClassVar[int] = 2

    def build(self) -> Objective:
        """The function (features, gather, rank) -> Terms."""
        return partial(mmcl_ssl, self.across, self.within)


def mmcl_ssl(across: float, within: float, features: Features, gather: Gather, rank: int) -> Terms:
    """Terms `loss`, `mmcl` and `ssl`; features hold two views."""
    first = rank * features.images.shape[1]
    pair = mmcl(1.0, features, gather, rank)["mmcl"]
    image = infonce(features.images[0], gather(features.images[1]), features.scale, first)
    text = infonce(features.texts[0], gather(features.texts[1]), features.scale, first)
    own = (image + text) / 2
    return {"loss": across * pair + within * own, "mmcl": pair, "ssl": own}
