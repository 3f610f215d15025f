"""DECREE (Feng et al. 2023, arXiv 2303.15180): the smallest stamp that makes all pictures alike to the picture tower.

    loss = - mean cosine of stamped pictures, over pairs of different ones       success: that mean above 0.99

A backdoor's trigger needs few pixels for it, since all triggered pictures come near one caption. No text tower is asked.
"""

import torch

from engine.inversion.search import Found, Search, Watch, smallest_stamp
from engine.inversion.stamp import Encode

ALIKE = 0.99  # mean cosine of a success


def self_cosine(rows: torch.Tensor) -> torch.Tensor:
    """0-d: the mean cosine of all pairs of different rows, [n, D] of unit length, n at least 2."""
    count = len(rows)
    return (rows.sum(0).square().sum() - rows.square().sum()) / (count * (count - 1))


def decree(encode: Encode, pictures: torch.Tensor, search: Search, seed: int, watch: Watch) -> Found:
    """The search on pictures, uint8 [N, 3, H, W]."""
    return smallest_stamp(encode, pictures, alike, ALIKE, search, (seed, "decree"), watch)


def alike(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(what is minimised, the mean cosine)."""
    cosine = self_cosine(rows)
    return -cosine, float(cosine.detach())
