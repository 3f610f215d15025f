"""LoREx, a detector at test time: the axis along which the pictures that come spread more than clean ones do
(calibretaliation/LoREx, 2026).

    m, S    = mean and covariance of the references;   e = ridge trace(S) / D
    W       = (S + e I)^(-1/2), whitening
    v       = the first principal axis of the whitened pictures that come
    score   = | (z - m) W v |

The pictures that come are clean ones and triggered ones in their shares, so the score is of the mixture: its covariance is
taken with these weights over all pictures at hand, and no draw decides. Any whitening gives the same scores. Cost: the
covariances, O((R + M) D^2), and two eigendecompositions of D x D; memory O(D^2) beside the pictures.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field

from measures.contract import Encoded, Measure, Number, Unmeasurable
from measures.rejection import PictureDetector, Scores, by_rows, compared, rejection

ROWS = 4096
ALIKE = 1e-9  # axes whose variances differ by less than this share of the larger are not told apart


class Lorex(PictureDetector):
    """Rejects pictures far out on the axis along which those that come spread more than clean ones."""

    kind: Literal["lorex"]
    ridge: float = Field(
        1e-3, ge=0, description="share of the mean variance that is added to every variance before they are inverted"
    )

    def least(self, width: int) -> int:
        """One more than the width: with fewer, directions without any spread are blown up to as much as the others have."""
        return width + 1

    def build(self) -> Measure:
        """The function Encoded -> {"lorex_auroc_at1", ...}."""
        return partial(lorex, self.ridge, self.level)


def lorex(ridge: float, level: float, encoded: Encoded) -> dict[str, Number]:
    """The numbers of measures/rejection.py; Unmeasurable where the references have no covariance to whiten by."""
    references, clean, triggered = compared(encoded, "lorex")
    distinct = len(torch.unique(references, dim=0))
    if distinct <= references.shape[1]:
        raise Unmeasurable(
            f"lorex has {distinct:,} different references, of embeddings that are {references.shape[1]:,} wide; give more "
            "references than that"
        )
    mean, covariance = moments([(references, 1 / len(references))])
    whiten = whitening(covariance * len(references) / (len(references) - 1), ridge)

    def score(others: torch.Tensor, share: float) -> Scores:
        parts = [(clean, (1 - share) / len(clean))]
        parts += [(triggered[others], share / int(others.sum()))] if share else []
        along = whiten @ axis(whiten, moments(parts)[1])
        far = partial(by_rows, lambda rows: ((rows - mean) @ along).abs())
        return Scores(far(references), far(clean), far(triggered))

    return rejection("lorex", level, encoded, score)


def moments(parts: list[tuple[torch.Tensor, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean [D], covariance [D, D]) of parts of rows [n, D] in float64, each row with the weight of its part; weights sum to
    1."""
    mean = torch.stack([weight * rows.sum(0, dtype=torch.float64) for rows, weight in parts]).sum(0)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows, weight in parts:
        for some in torch.split(rows, ROWS):
            apart = some.double() - mean
            covariance += weight * apart.T @ apart
    return mean, covariance


def whitening(covariance: torch.Tensor, ridge: float) -> torch.Tensor:
    """[D, D]: the inverse square root of a covariance with the ridge, symmetric; Unmeasurable if that is singular."""
    eye = torch.eye(len(covariance), dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(covariance + ridge * covariance.trace() / len(covariance) * eye)
    if values[0] <= 1e-12 * values[-1]:
        raise Unmeasurable(
            "lorex finds references that do not spread in some direction, so that none can be measured by them; give a "
            "ridge above 0, or other references"
        )
    return torch.as_tensor(vectors / values.sqrt() @ vectors.T)


def axis(whiten: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """[D]: the first principal axis of what has this covariance, once it is whitened; Unmeasurable if there is no first."""
    values, vectors = torch.linalg.eigh(whiten.T @ covariance @ whiten)
    if len(values) > 1 and values[-1] - values[-2] <= ALIKE * values[-1]:
        raise Unmeasurable("lorex finds that the pictures spread as much along several axes, so none is the first")
    return torch.as_tensor(vectors[:, -1])
