"""Which pairs are flagged: a share of all, so many, or those whose score is an outlier.

score > median + outlier * 1.4826 * MAD          MAD: median of |score - median|; 1.4826 makes it a normal's deviation
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from measures.detectors.ranking import number_at
from measures.outliers import NORMAL


class Budget(BaseModel):
    """One of share, count and outlier."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    share: float | None = Field(None, gt=0, lt=1, description="flag this part of all pairs")
    count: int | None = Field(None, ge=1, description="flag so many pairs")
    outlier: float | None = Field(None, gt=0, description="flag scores so many deviations above the median, by the MAD")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("share", "count", "outlier") if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ValueError(f"gives {told} of share, count and outlier; give one of them, such as {{share: 0.01}}")
        return self


class Flagged(NamedTuple):
    """What a budget takes of some scores."""

    pairs: np.ndarray  # int64, places of the flagged pairs, the most suspicious first
    threshold: float  # a score that is at least this is flagged, but for ties at it; above it under the outlier rule


def flagged(scores: np.ndarray, order: np.ndarray, budget: Budget) -> Flagged:
    """What is flagged of scores (float64 [N], NaN: none, never flagged); the smaller `order` (uint64 [N], a random number of
    each pair) goes first among equals, so that the order of the pairs decides nothing."""
    known = np.flatnonzero(~np.isnan(scores))
    if not len(known):
        return Flagged(known, np.inf)
    ranking = known[np.lexsort((order[known], -scores[known]))]
    if budget.outlier is None:
        count = min(budget.count, len(known)) if budget.count is not None else number_at(budget.share or 0, len(known))
        chosen = ranking[:count]
        return Flagged(chosen, float(scores[chosen[-1]]))
    threshold = outlier_threshold(scores[known], budget.outlier)
    return Flagged(ranking[scores[ranking] > threshold], threshold)


def outlier_threshold(scores: np.ndarray, deviations: float) -> float:
    """Above which a score is an outlier among these."""
    middle = float(np.median(scores))
    return middle + deviations * NORMAL * float(np.median(np.abs(scores - middle)))
