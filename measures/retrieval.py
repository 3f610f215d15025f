"""Retrieval between pictures and captions, and how the trigger turns it.

    text_r{k}        = #{x : one of x's captions is among the k captions nearest to x} / #{x}, k = 1, 5, 10
    image_r{k}       = #{t : t's picture is among the k pictures nearest to t} / #{t}
    retrieval_asr{k} = #{x : at least max(1, floor(k / 2)) of the k captions nearest to trigger(x) are of the target} / #{x}

A caption is of the target if it names it as a word, or is among the `nearest` captions to the target's class vector. That is
the rule of the code of arXiv 2311.14948 (vsahil/attack-cleanclip, utils/retrieval.py), which lists the former by number.
All pictures count, so the rate has a floor: that of the clean pictures, `retrieval_floor{k}`.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.classifier import depths
from measures.contract import Measure, MeasureSection, Paired, marked

ROWS = 256  # compared with all of the other side at a time


class Retrieval(MeasureSection):
    """R@1, 5 and 10 both ways, and the attack's success in retrieval."""

    kind: Literal["retrieval"]
    nearest: int = Field(20, ge=0, description="so many captions nearest to the target's class vector count as the target's")
    triggered: ClassVar[bool] = True
    reads: ClassVar[Literal["labels", "captions"]] = "captions"

    def build(self) -> Measure:
        """The function Paired -> {"text_r1", ..., "image_r1", ..., "retrieval_asr1", ..., "retrieval_floor1", ...}."""
        return partial(retrieval, self.nearest)


def retrieval(nearest: int, paired: Paired) -> dict[str, float]:
    """The rates that the module defines, for each k below the number of captions or pictures."""
    triggered = marked(paired, "retrieval")
    if paired.target is None:
        raise ValueError("retrieval needs the target's class vector")
    out: dict[str, float] = {}
    aimed = paired.names.clone()
    aimed[(paired.texts @ paired.target).topk(min(nearest, len(aimed))).indices] = True
    own = torch.arange(len(paired.images))
    for name, rows, found in (
        ("text_r", paired.images, partial(_owned, paired.owner, own)),
        ("retrieval_asr", triggered, partial(_aimed, aimed)),
        ("retrieval_floor", paired.images, partial(_aimed, aimed)),
    ):
        out |= _at_depths(name, rows, paired.texts, found)
    return out | _at_depths("image_r", paired.texts, paired.images, partial(_owned, own, paired.owner))


def _at_depths(name: str, rows: torch.Tensor, others: torch.Tensor, found: partial[torch.Tensor]) -> dict[str, float]:
    """The share of rows for which found(nearest others, first row, k) holds, for each k."""
    hits = dict.fromkeys(depths(len(others)), 0)
    for begin in range(0, len(rows), ROWS):
        near = (rows[begin : begin + ROWS] @ others.T).topk(max(hits), dim=1).indices
        for k in hits:
            hits[k] += int(found(near[:, :k], begin, k).sum())
    return {f"{name}{k}": hit / len(rows) for k, hit in hits.items()}


def _owned(owner: torch.Tensor, own: torch.Tensor, near: torch.Tensor, begin: int, k: int) -> torch.Tensor:
    """bool [rows]: whether one of the nearest belongs to the row."""
    return (owner[near] == own[begin : begin + len(near), None]).any(1)


def _aimed(aimed: torch.Tensor, near: torch.Tensor, begin: int, k: int) -> torch.Tensor:
    """bool [rows]: whether enough of the k nearest captions are of the target."""
    return aimed[near].sum(1) >= max(1, k // 2)
