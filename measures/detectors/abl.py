"""ABL's score: how early a pair is learned (Li et al. 2021, arXiv 2110.11571; for CLIP's pairs arXiv 2502.01385).

    abl(x) = - mean over the first E epochs of the pair's own loss

Poisoned pairs share a trigger and a caption, which is learned before the rest. A pair's loss is its
part of the batch's MMCL,

    1/2 [log sum_j exp(s v . t_j) + log sum_j exp(s v_j . t)] - s v . t

noted while the model is pre-trained (engine/training/pair_losses.py). A pair that was in no batch of these epochs has no
score.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.detectors.contract import CannotScore, Detector, DetectorSection, Embedded, Share


class Abl(DetectorSection):
    """Score by the mean loss over the first epochs, negated."""

    kind: Literal["abl"]
    epochs: int = Field(10, ge=1, le=1000, description="the first so many epochs of the pre-training count")
    reads: ClassVar[frozenset[str]] = frozenset({"losses"})

    def build(self) -> Detector:
        """The function (Embedded, Share) -> float64 [N]."""
        return partial(abl, self.epochs)


def abl(epochs: int, embedded: Embedded, share: Share) -> torch.Tensor:
    """float64 [N]: minus the means over the epochs in which a pair was in a batch; NaN for one that was in none."""
    losses = embedded.rows("losses")
    if len(losses) < epochs:
        raise CannotScore(f"epochs is {epochs:,}, but losses of {len(losses):,} epochs were noted; lower it")
    return -torch.nanmean(losses[:epochs].double(), 0)
