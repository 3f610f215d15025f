"""k-dist: the distance to the k-th nearest neighbour (Ramaswamy et al. 2000, SIGMOD; for CLIP's pairs arXiv 2502.01385).

    k_dist(x) = r_k(x)

Pictures under one trigger lie near each other and far from the others: few poisoned pairs are a small cluster of their own,
whose k-th neighbour is far. From k + 1 poisoned pairs on, they are each other's neighbours.
"""

from __future__ import annotations

from typing import Literal

import torch

from measures.detectors.density import Local
from measures.detectors.neighbourhood import NeighbourSection


class KDist(NeighbourSection):
    """Score by the distance to the k-th nearest neighbour."""

    kind: Literal["k_dist"]

    def score(self, local: Local) -> torch.Tensor:
        """r(x)."""
        return local.radius[:, 0]
