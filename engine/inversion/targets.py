"""A scan of the zero-shot head: for each class the smallest stamp by which pictures are taken for it.

    loss = mean of max(0, margin - g),   g = s (v . c_target - max over other classes of v . c)        s: the model's scale
    success: g >= margin for at least `wins` of a batch

The pictures need no labels. A class that a backdoor aims at needs a far smaller stamp than the others: its anomaly index is
high (Neural Cleanse, Wang et al. 2019; on CLIP's head, CLIP-Inspector, arXiv 2604.09101).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from engine.inversion.search import Found, Search, Watch, smallest_stamp
from engine.inversion.stamp import Encode

MARGIN = 1.0  # of logits: the target is e times as probable as the next class
WINS = 0.95


class Head(NamedTuple):
    """A zero-shot head: class vectors times the model's scale, [C, D], and the classes' names."""

    vectors: torch.Tensor
    names: Sequence[str]


def smallest_for(  # noqa: PLR0913  (the same as in DECREE, and the class)
    encode: Encode, pictures: torch.Tensor, head: Head, target: int, search: Search, seed: int, watch: Watch
) -> Found:
    """The search for one class on pictures, uint8 [N, 3, H, W]."""
    names = (seed, "target", head.names[target])
    # the threshold is exceeded by a share that reaches WINS
    return smallest_stamp(encode, pictures, partial(taken_for, head.vectors, target), WINS - 1e-6, search, names, watch)


def taken_for(vectors: torch.Tensor, target: int, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(what is minimised, the share of rows [n, D] that win by the margin)."""
    logits = rows @ vectors.T
    own = torch.zeros_like(logits[:1], dtype=torch.bool)
    own[:, target] = True
    gap = logits[:, target] - logits.masked_fill(own, -torch.inf).max(1).values
    return (MARGIN - gap).clamp(min=0).mean(), float((gap.detach() >= MARGIN).float().mean())
