"""Neighbours among clean pictures, a detector at test time: how far a picture lies from references, or how much less dense
its surroundings are than theirs. It works without any triggered picture beside it.

The scores are those of detectors of training pairs, `k_dist`, `slof`, `lid` and `dao` (measures/detectors/), of each picture
among the references; a reference is none of its own neighbours, and equal references count once. Cost: O((M + R) R D),
exact; memory 1,024 x 8,192 distances beside the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from pydantic import Field

from measures.contract import Encoded, Measure, Number, Unmeasurable
from measures.detectors.dao import Dao
from measures.detectors.density import Local, lids
from measures.detectors.k_dist import KDist
from measures.detectors.lid import Lid
from measures.detectors.points import Points, merged
from measures.detectors.search import QUERIES, Near, nearest
from measures.detectors.slof import Slof
from measures.rejection import PictureDetector, Scores, compared, rejection

Score = Literal["k_dist", "slof", "lid", "dao"]


class ReferenceKnn(PictureDetector):
    """Rejects pictures that lie far from clean ones."""

    kind: Literal["reference_knn"]
    score: Score = Field("k_dist", description="of a picture among the references, as the detector of that kind gives it")
    k: int = Field(16, ge=2, le=1000, description="neighbours")

    def least(self, width: int) -> int:
        """One more than the neighbours, as a reference is none of its own."""
        return self.k + 1

    def build(self) -> Measure:
        """The function Encoded -> {"reference_knn_auroc_at1", ...}."""
        return partial(reference_knn, self.score, self.k, self.level)


def reference_knn(score: Score, k: int, level: float, encoded: Encoded) -> dict[str, Number]:
    """The numbers of measures/rejection.py; Unmeasurable where too few references differ."""
    references, clean, triggered = compared(encoded, "reference_knn")
    points = merged((references,))
    if len(points) <= k:
        raise Unmeasurable(
            f"reference_knn has {len(points):,} different references, too few for {k} neighbours beside each; give more "
            "references or a smaller k"
        )
    known = list(_near(points, points.take(torch.arange(len(points))), k))
    radii = torch.cat([near.distances[:, -1] for near in known])
    of_lids = torch.cat([lids(near.distances, near.distances[:, -1:]) for near in known])
    section = _section(score, k)

    def scored(parts: list[Near]) -> torch.Tensor:
        return torch.cat([section.score(Local(*near, radii, of_lids)) for near in parts])

    found = (scored(list(_near(points, rows, k))) for rows in (clean, triggered))
    scores = Scores(points.of_first(scored(known), len(references)), *found)
    return rejection("reference_knn", level, encoded, lambda others, share: scores)


def _section(score: Score, k: int) -> KDist | Slof | Lid | Dao:
    """The detector of training pairs that scores so."""
    if score == "k_dist":
        return KDist(kind="k_dist", k=k)
    if score == "slof":
        return Slof(kind="slof", k=k)
    return Lid(kind="lid", k=k) if score == "lid" else Dao(kind="dao", k=k)


def _near(points: Points, rows: torch.Tensor, k: int) -> Iterator[Near]:
    """The k points nearest to each of the rows [n, D], that which equals one left out; few rows at once."""
    for some in torch.split(rows, QUERIES):
        yield nearest(points, some, points.find(some), k)
