"""DAO, the dimensionality-aware outlier factor (Anderberg et al. 2024, arXiv 2401.05453; for CLIP's pairs arXiv
2502.01385), in the logarithm that the latter takes.

    dao(x) = mean over o in N_k(x) of LID(o) ln(r_k(x) / r_k(o))

SLOF's ratio, raised to the dimensionality about the neighbour: in d dimensions densities go as r^-d.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from measures.detectors.density import Local
from measures.detectors.neighbourhood import NeighbourSection


class Dao(NeighbourSection):
    """Score by how much less dense a neighbourhood is than the neighbours' own."""

    kind: Literal["dao"]
    uses: ClassVar[frozenset[str]] = frozenset({"radii", "lids"})

    def score(self, local: Local) -> torch.Tensor:
        """The mean of logarithms, weighted by the neighbours' dimensionality."""
        assert local.radii is not None
        assert local.lids is not None
        return (local.lids[local.others] * torch.log(local.radius / local.radii[local.others])).mean(1)
