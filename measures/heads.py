"""Decomp, a detector at test time for vision transformers (ICML 2025): in triggered pictures many heads of the last block
write something else into the embedding than they do in clean ones.

    c_h(x)   = what head h adds to the unit embedding of x, mu_h its mean over the references
    score    = #{h : c_h(x) . mu_h <= agreement}, the heads that are infected

Published code rejects more than 5 of 12 (`above: 5`); without `above` the references fix the threshold as for every other
detector. The parts are made in engine/models/heads.py. Cost: references go through the picture tower twice more, judged
pictures once more; memory H numbers a picture.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.contract import Encoded, Measure, Number
from measures.rejection import PictureDetector, Scores, rejection


class Heads(PictureDetector):
    """Rejects pictures in which many heads of the last block write something unusual."""

    kind: Literal["heads"]
    agreement: float = Field(0.002, description="a head is infected where its part times its mean part is at most this")
    above: int | None = Field(
        None, ge=0, description="infected heads above which a picture is rejected, in place of what references say"
    )
    reads_heads: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"heads_auroc_at1", ...}."""
        return partial(heads, self.agreement, self.above, self.level)


def heads(agreement: float, above: int | None, level: float, encoded: Encoded) -> dict[str, Number]:
    """The numbers of measures/rejection.py."""
    if encoded.heads is None:
        raise ValueError("heads needs what the heads of a vision transformer add")
    scores = Scores(*(infected(rows, agreement) for rows in encoded.heads))
    return rejection("heads", level, encoded, lambda others, share: scores, fixed=above)


def infected(agreements: torch.Tensor, limit: float) -> torch.Tensor:
    """[M]: how many of the H heads agree with their mean no more than the limit; [M, H]."""
    return (agreements <= limit).sum(1).float()
