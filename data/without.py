"""What a pre-training leaves out of its pairs: those that a file names or, within a study, a share by a detector's scores,
at random, or all that the attack has poisoned.

The clean set and the poison are drawn as if nothing were left out, and the other pairs come in the same order.
"""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from data.refusal import UserError
from data.section import Section
from data.seeding import ranks, smallest_k
from data.shards import Index


def _is_none(value: object) -> bool:
    return value is None


WAYS = ("file", "detector", "random", "plan")


class Without(Section):
    """Which pairs a pre-training leaves out, in one of four ways. The untouched twin leaves out none."""

    file: str | None = Field(
        None,
        exclude_if=_is_none,
        description="a file with one JSON object with a `key` a line, or a run's poison.json",
    )
    detector: str | None = Field(
        None,
        exclude_if=_is_none,
        description="those that this one of detect.detectors finds most suspicious in the same pre-training with nothing "
        "left out, which the study carries out first",
    )
    random: float | None = Field(None, ge=0, lt=1, exclude_if=_is_none, description="this share, drawn by hash(seed, key)")
    plan: Literal[True] | None = Field(
        None,
        exclude_if=_is_none,
        description="those that the attack has poisoned, which no defender knows",
    )
    share: float | None = Field(None, ge=0, lt=1, exclude_if=_is_none, description="for detector: of all pairs")
    count: int | None = Field(None, ge=0, exclude_if=_is_none, description="for detector: how many")
    digest: str | None = Field(
        None,
        exclude_if=_is_none,
        description="for file: of its keys in any order, at least 12 hex digits; default: the file's, so that it may move",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Without":
        ways = [way for way in WAYS if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"give one of {', '.join(WAYS)}; here are {', '.join(ways) or 'none'}")
        budget = [name for name in ("share", "count") if getattr(self, name) is not None]
        if self.detector is not None and len(budget) != 1:
            raise ValueError(
                "detector needs to be told how many of the most suspicious pairs are left out; give a share or a count"
            )
        if self.detector is None and budget:
            raise ValueError(f"{budget[0]} goes with detector; random is a share by itself, file and plan say which pairs")
        if self.digest is not None and self.file is None:
            raise ValueError("digest goes with file")
        return self

    @property
    def way(self) -> str:
        """Which of the four it is."""
        return next(way for way in WAYS if getattr(self, way) is not None)

    @property
    def is_none(self) -> bool:
        """Whether it is known to leave out no pair."""
        return 0 in (self.random, self.share, self.count)

    @property
    def in_study(self) -> bool:
        """Whether it is beside the same pre-training with nothing left out."""
        return self.file is None

    def number(self, pairs: int) -> int | None:
        """How many of `pairs` it leaves out; None if that is not known by their number."""
        share = self.random if self.random is not None else self.share
        return self.count if share is None else round(share * pairs)

    def __str__(self) -> str:
        if self.detector is not None:
            budget = f"{self.count:,} pairs" if self.count is not None else percent(self.share or 0.0)
            return f"{self.detector} {budget}"
        return f"random {percent(self.random)}" if self.random is not None else self.file or "plan"


def percent(share: float) -> str:
    """A share in words: '10 %', '0.5 %'."""
    return f"{100 * share:.6g} %"


def check_left(without: Without, out: int, pairs: int) -> None:
    """UserError if none of `pairs` pairs would be left."""
    if out >= pairs:
        raise UserError(
            f"data.pretrain.without ({without}) leaves out {out:,} of {pairs:,} pairs, so that none is left; leave out fewer"
        )


def drawn(index: Index, seed: int, number: int, among: np.ndarray | None) -> np.ndarray:
    """int64, sorted: so many samples of those `among` (None: of all), drawn by hash(seed, key)."""
    return np.sort(smallest_k(ranks(seed, "left out", index.hashes), number, among))
