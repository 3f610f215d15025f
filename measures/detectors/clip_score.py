"""CLIP score: how little a picture is like its own caption (Hessel et al. 2021, EMNLP, arXiv 2104.08718).

    clip_score(x) = - v . t

v, t: unit embeddings. A model that has learned the attack finds triggered pictures like their captions; one trained
elsewhere, or for a few epochs, does not.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from measures.detectors.contract import Detector, DetectorSection, Embedded, Share
from measures.detectors.points import ROWS


class ClipScore(DetectorSection):
    """Score by the cosine of picture and caption, negated."""

    kind: Literal["clip_score"]
    reads: ClassVar[frozenset[str]] = frozenset({"images", "texts"})

    def build(self) -> Detector:
        """The function (Embedded, Share) -> float64 [N]."""
        return clip_score


def clip_score(embedded: Embedded, share: Share) -> torch.Tensor:
    """float64 [N]: minus the cosines."""
    images, texts = embedded.rows("images"), embedded.rows("texts")
    blocks = zip(torch.split(images, ROWS), torch.split(texts, ROWS), strict=True)
    return -torch.cat([(left.double() * right.double()).sum(1) for left, right in blocks])
