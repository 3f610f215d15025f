"""Neighbours among clean pictures, a detector at test time: how far a picture lies from references, or how much less dense
its surroundings are than theirs. It works without any triggered picture beside it.

With N(x) the k references nearest to x, x itself left out if it is one, r_i(x) the distance to the i-th, r = r_k:

    k_dist = r(x)                                              Ramaswamy et al. 2000
    slof   = mean over o in N(x) of r(x) / r(o)                Schubert et al. 2014, the simplified local outlier factor
    lid    = - k / sum over i of ln(r_i(x) / r(x))             Amsaleg et al. 2015, local intrinsic dimensionality
    dao    = mean over o in N(x) of lid(o) ln(r(x) / r(o))     Anderberg et al. 2024, dimensionality-aware outliers

Equal references count once. Cost: O((M + R) R D), exact; memory 512 rows of R distances beside the pictures.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from measures.contract import Encoded, Measure, Number, Unmeasurable
from measures.rejection import PictureDetector, Scores, compared, rejection

ROWS = 512
TOUCH = 1e-6  # unit rows nearer than this are the same: float32 knows no better
FARTHEST = 1e9  # a dimensionality beyond is that of neighbours all equally far

Score = Literal["k_dist", "slof", "lid", "dao"]


class ReferenceKnn(PictureDetector):
    """Rejects pictures that lie far from clean ones."""

    kind: Literal["reference_knn"]
    score: Score = Field("k_dist", description="of a picture among the references: what the module defines")
    k: int = Field(16, ge=1, description="neighbours")

    def least(self, width: int) -> int:
        """One more than the neighbours, as a reference is none of its own."""
        return self.k + 1

    def build(self) -> Measure:
        """The function Encoded -> {"reference_knn_auroc_at1", ...}."""
        return partial(reference_knn, self.score, self.k, self.level)


class Near(NamedTuple):
    """Of n pictures: the distances to the k nearest references, nearest first, and which these are; [n, k] each."""

    distances: torch.Tensor
    places: torch.Tensor


def reference_knn(score: Score, k: int, level: float, encoded: Encoded) -> dict[str, Number]:
    """The numbers of measures/rejection.py; Unmeasurable where too few references differ."""
    references, clean, triggered = compared(encoded, "reference_knn")
    distinct, places = torch.unique(references.double(), dim=0, return_inverse=True)
    if len(distinct) <= k:
        raise Unmeasurable(
            f"reference_knn has {len(distinct):,} different references, too few for {k} neighbours beside each; give more "
            "references or a smaller k"
        )
    known = nearest(distinct, distinct, k, itself=True)
    found = [scored(score, known, known)[places]]
    found += [scored(score, nearest(rows, distinct, k), known) for rows in (clean, triggered)]
    scores = Scores(*found)
    return rejection("reference_knn", level, encoded, lambda others, share: scores)


def nearest(rows: torch.Tensor, references: torch.Tensor, k: int, itself: bool = False) -> Near:
    """The k references [R, D] nearest to each of the rows [n, D]; if these are the references, `itself` leaves each out."""
    squares, parts = references.square().sum(1), []
    for begin in range(0, len(rows), ROWS):
        some = rows[begin : begin + ROWS].double()
        far = (some.square().sum(1, keepdim=True) - 2 * some @ references.T + squares).clamp_min(0).sqrt()
        far[far < TOUCH] = 0.0
        if itself:
            far[torch.arange(len(some)), torch.arange(begin, begin + len(some))] = torch.inf
        parts.append(far.topk(k, largest=False))
    return Near(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


def scored(score: Score, near: Near, known: Near) -> torch.Tensor:
    """[n]: the score of pictures by their neighbours, `known` being the references' own."""
    radius, theirs = near.distances[:, -1], known.distances[:, -1][near.places]
    if score == "k_dist":
        return radius
    if score == "slof":
        return (radius[:, None] / theirs).mean(1)
    if score == "lid":
        return dimension(near)
    apart = (radius[:, None].clamp_min(TOUCH) / theirs).log()
    return (dimension(known)[near.places] * apart).mean(1)


def dimension(near: Near) -> torch.Tensor:
    """[n]: the local intrinsic dimensionality; FARTHEST where all are equally far, 0 where one is at the place."""
    radius = near.distances[:, -1:].clamp_min(TOUCH)
    total = (near.distances / radius).clamp_min(0).log().sum(1)
    return (-near.distances.shape[1] / total.clamp_max(-1e-300)).clamp_max(FARTHEST)
