"""What a detector sees of the neighbourhoods of some pairs, and the local intrinsic dimensionality that two share."""

from __future__ import annotations

from typing import NamedTuple

import torch

MOST = 1e9  # a LID beyond is taken for this: where all k distances are equal it has no bound


class Local(NamedTuple):
    """n pairs among U references. The last distance is r(x), the radius of the neighbourhood: that of the k-th neighbour,
    in the published form of the one behind it. `radii` and `lids` are None where the detector does not ask."""

    distances: torch.Tensor  # float64 [n, k], [n, k + 1] in the published form: of the neighbours, nearest first
    others: torch.Tensor  # int64 [n, k]: the neighbours o
    radii: torch.Tensor | None  # float64 [U]: r(o)
    lids: torch.Tensor | None  # float64 [U]: LID(o)
    epsilon: float = 0.0  # what the published form adds in logarithms

    @property
    def radius(self) -> torch.Tensor:
        """float64 [n, 1]: r(x)."""
        return self.distances[:, -1:]

    @property
    def k(self) -> int:
        """How many neighbours."""
        return self.others.shape[1]


def lids(distances: torch.Tensor, radius: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """float64 [n]: - k / sum_i ln(r_i / r + epsilon) of the k distances r_i [n, k] in a radius r [n, 1], Levina and Bickel's
    maximum-likelihood estimate in the form of Amsaleg et al. 2015; at most MOST."""
    sums = torch.log(distances / radius + epsilon).sum(1)
    k = distances.shape[1]
    if epsilon:
        return -k / sums
    return -k / sums.clamp(max=-k / MOST)
