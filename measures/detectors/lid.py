"""LID, local intrinsic dimensionality (Houle 2017; estimate of Amsaleg et al. 2015, KDD; for CLIP's pairs arXiv 2502.01385).

    lid(x) = - k / sum over i = 1..k of ln(r_i(x) / r_k(x))

How fast the number of neighbours grows with the distance. Where all k distances are equal it has no bound, and is
taken for 1e9.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from measures.detectors.density import Local, lids
from measures.detectors.neighbourhood import NeighbourSection


class Lid(NeighbourSection):
    """Score by the local intrinsic dimensionality."""

    kind: Literal["lid"]
    k: int = Field(64, ge=2, le=1000, description="neighbours that make a neighbourhood")

    def score(self, local: Local) -> torch.Tensor:
        """The estimate."""
        return lids(local.distances[:, : local.k], local.radius, local.epsilon)
