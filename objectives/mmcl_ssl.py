"""MMCL + SSL: contrast across modalities, and within each modality against an augmented view.

    L = a * MMCL + w * SSL                    average: false
    L = (a * MMCL + w * SSL) / 2              average: true, as CyCLIP's code combines them

SSL has weights for pictures and for captions, and may leave poisoned pairs out (objectives/self_supervised.py).
The same loss pre-trains (SLIP-like, arXiv 2112.12750, with InfoNCE in both modalities) and cleans (CleanCLIP, Bansal
et al. 2023, arXiv 2303.03323, eq. 4; arXiv 2311.14948, eq. 3): `mmcl_ssl` and `cleanclip` are two names of one thing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Learned, Objective, Terms
from objectives.mmcl import mmcl
from objectives.self_supervised import Ssl, WithinModality

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class MmclSsl(WithinModality):
    """Contrast pictures with captions, and each with its own augmented view."""

    kind: Literal["mmcl_ssl", "cleanclip"]
    across: float = Field(1.0, ge=0, description="weight of the picture-caption term")
    within: float = Field(1.0, ge=0, description="weight of the picture-picture and caption-caption term")
    average: bool = Field(False, description="half of the weighted sum, as CyCLIP's code has it")
    direction: Literal["one_way", "symmetric"] = "one_way"
    temperature: Literal["shared", "own"] = Field("shared", description="of the second term: the first's scale, or its own")

    @property
    def _ssl(self) -> Ssl:
        shared = {name: getattr(self, name) for name in ("direction", "temperature", "pictures", "captions", "poisoned")}
        return Ssl(kind="ssl", **shared)

    @property
    def views(self) -> tuple[int, int]:
        """Two of whatever is contrasted with itself."""
        return self._ssl.views

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """The second term's own scale, if it has one."""
        return self._ssl.learned(width, draw)

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        share = 0.5 if self.average else 1.0
        return partial(mmcl_ssl, share * self.across, share * self.within, self._ssl.build())


def mmcl_ssl(across: float, within: float, ssl: Objective, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, `mmcl` and `ssl`; features hold two views."""
    pair, own = mmcl(1.0, features, exchange)["mmcl"], ssl(features, exchange)["ssl"]
    return {"loss": across * pair + within * own, "mmcl": pair, "ssl": own}
