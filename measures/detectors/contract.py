"""What every detector of poisoned training pairs promises.

A section has `kind` and `build()`, which returns a picklable pure function (Embedded, Share) -> float64 [N], one score a
pair, higher for the more suspicious. It depends neither on the order of the pairs nor on the number of ranks: what is drawn,
as references or batches, is drawn by numbers that belong to the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field


class CannotScore(ValueError):
    """The pairs are not such as a detector can score, and why; in words for whoever set it up."""


class Share(Protocol):
    """This process's share of the work of scoring."""

    @property
    def rank(self) -> int:
        """This process's place among all."""
        ...

    @property
    def size(self) -> int:
        """How many processes share the work."""
        ...

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over processes; each has zeros where others have values."""
        ...

    def beat(self) -> None:
        """Called between two blocks of work: this process is at work."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process does all of it."""

    rank: int = 0
    size: int = 1

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """The very tensor."""
        return part

    def beat(self) -> None:
        """Nobody waits."""


ALONE = Alone()


def own_range(share: Share, count: int) -> range:
    """Which of so many rows are this process's."""
    each = ceil(count / share.size)
    return range(min(count, share.rank * each), min(count, (share.rank + 1) * each))


@dataclass
class Embedded:
    """N training pairs as a model sees them; D width, E epochs. What a detector does not ask for may be None."""

    order: torch.Tensor  # int64 [N], a random number of each pair: the smallest are drawn
    images: torch.Tensor | None = None  # [N, D] unit rows
    texts: torch.Tensor | None = None
    raw_images: torch.Tensor | None = None  # [N, D], before they are made unit rows
    raw_texts: torch.Tensor | None = None
    losses: torch.Tensor | None = None  # [E, N] of each pair in the first epochs, NaN where it was in no batch
    notes: dict[str, dict[str, float]] = field(default_factory=dict)  # by detector: what it says beside its scores

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, what: str) -> torch.Tensor:
        """The rows of that name; ValueError if they are missing."""
        value: torch.Tensor | None = getattr(self, what)
        if value is None:
            raise ValueError(f"a detector asks for {what}, which were not encoded")
        return value


Detector = Callable[[Embedded, Share], "torch.Tensor"]  # quoted: a spec is read without torch


class DetectorSection(BaseModel):
    """The parent of every detector's section: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str | None = Field(
        None, min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="what its scores are called; default: its kind",
    )  # fmt: skip
    reads: ClassVar[frozenset[str]] = frozenset()  # the fields of Embedded that it asks for, where its settings don't say

    @property
    def title(self) -> str:
        """What its scores are called."""
        return self.name or str(getattr(self, "kind"))  # noqa: B009  (each has one)

    @property
    def asks(self) -> frozenset[str]:
        """The fields of Embedded that it asks for."""
        return self.reads

    def check(self, pairs: int) -> None:
        """CannotScore if it can't score so many pairs here, whatever they are: told before any is encoded."""
