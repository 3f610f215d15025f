"""What a pre-training leaves out of its pairs: those that a file names or, within a study, a share at random,
or all that the attack has poisoned.

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


WAYS = ("file", "random", "plan")


class Without(Section):
    """Which pairs a pre-training leaves out, in one of three ways. The untouched twin leaves out none."""

    file: str | None = Field(
        None,
        exclude_if=_is_none,
        description="a file with one JSON object with a `key` a line, or a run's poison.json",
    )
    random: float | None = Field(None, ge=0, lt=1, exclude_if=_is_none, description="this share, drawn by hash(seed, key)")
    plan: Literal[True] | None = Field(
        None,
        exclude_if=_is_none,
        description="those that the attack has poisoned, which no defender knows",
    )
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
        if self.digest is not None and self.file is None:
            raise ValueError("digest goes with file")
        return self

    @property
    def way(self) -> str:
        """Which of the three it is."""
        return next(way for way in WAYS if getattr(self, way) is not None)

    @property
    def is_none(self) -> bool:
        """Whether it is known to leave out no pair."""
        return self.random == 0

    @property
    def in_study(self) -> bool:
        """Whether it is beside the same pre-training with nothing left out."""
        return self.file is None

    def number(self, pairs: int) -> int | None:
        """How many of `pairs` it leaves out; None if that is not known by their number."""
        return None if self.random is None else round(self.random * pairs)

    def __str__(self) -> str:
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
