"""SLOF, the simplified local outlier factor (Schubert et al. 2014, DMKD 28; for CLIP's pairs arXiv 2502.01385).

    slof(x) = mean over o in N_k(x) of r_k(x) / r_k(o)

About 1 where x is as densely surrounded as its neighbours are, above where it is less so.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from measures.detectors.density import Local
from measures.detectors.neighbourhood import NeighbourSection


class Slof(NeighbourSection):
    """Score by how much farther neighbours are than the neighbours' own."""

    kind: Literal["slof"]
    uses: ClassVar[frozenset[str]] = frozenset({"radii"})

    def score(self, local: Local) -> torch.Tensor:
        """The mean ratio of radii."""
        assert local.radii is not None
        return (local.radius / local.radii[local.others]).mean(1)
