"""What every measure promises.

A measure section names an evaluation set (`images`), says whether it needs the triggered pictures (`triggered`) and under
which attack (`attack_kind`), and has `build()`, which returns a picklable pure function Encoded -> named numbers. One that
is fitted names a training set, of the same classes, as the second of its `sets`, and finds that one's clean pictures in
`fitted_on`. One that compares with clean pictures (`clean_set`) finds them in `references`, and what its own `prompts` gave
in `prompts`. Pictures are encoded once for all measures; every number comes from counts or means over whole sets, so it does
not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator


class NotFinite(ValueError):
    """An embedding, or a number that is made of embeddings, is not finite; no measure judges it."""


class Unmeasurable(ValueError):
    """These embeddings, though finite, do not let a measure say anything: its sentence is told in place of its numbers."""


def check_rows(rows: torch.Tensor, what: str) -> None:
    """NotFinite naming how many of the rows [n, D] have no direction: NaN or infinity in them, or a length of 0 or beyond
    the type's range. No comparison with NaN is true and zeros are all equal, so ranks and votes would look right."""
    lengths = rows.norm(dim=-1)
    wrong = int((~(lengths.isfinite() & (lengths > 0))).sum())
    if wrong:
        raise NotFinite(f"{wrong:,} of {lengths.numel():,} embeddings of {what} are not finite, or of length 0")


@dataclass(frozen=True)
class Encoded:
    """An evaluation set as unit embeddings: M pictures, C classes, D width; NotFinite where one is none."""

    images: torch.Tensor  # [M, D]
    triggered: torch.Tensor | None  # [M, D], the same pictures with the trigger; None if no measure needs them
    labels: torch.Tensor  # int64 [M]
    classes: torch.Tensor  # [C, D]
    attacked_classes: torch.Tensor  # [C, D], the same with the attack's words in the prompts, for triggered pictures
    targets: torch.Tensor  # int64 [M], the class that the attack aims at with each picture
    fitted_on: tuple[torch.Tensor, torch.Tensor] | None = None  # (unit rows [K, D], labels int64 [K]) of the training set
    references: torch.Tensor | None = None  # [R, D], other pictures that are known to be clean
    prompts: torch.Tensor | None = None  # [C, K, D], the measure's own texts, K of each class
    # of a vision transformer how each head's part agrees with its mean over the references: [R, H], [M, H], triggered [M, H]
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        check_rows(self.images, "pictures")
        if self.triggered is not None:
            check_rows(self.triggered, "triggered pictures")
        check_rows(self.classes, "classes")
        if self.attacked_classes is not self.classes:
            check_rows(self.attacked_classes, "classes with the attack's words")
        if self.fitted_on is not None:
            check_rows(self.fitted_on[0], "the training set's pictures")
        if self.references is not None:
            check_rows(self.references, "the references")
        if self.prompts is not None:
            check_rows(self.prompts, "the measure's own prompts")
        for rows in self.heads or ():
            if wrong := int((~rows.isfinite()).any(1).sum()):
                raise NotFinite(f"{wrong:,} of {len(rows):,} embeddings of heads are not finite")


@dataclass(frozen=True)
class Paired:
    """A set of M pictures with T captions as unit embeddings, one caption or more a picture; D width; NotFinite where one
    is none."""

    images: torch.Tensor  # [M, D]
    triggered: torch.Tensor | None  # [M, D], as in Encoded
    texts: torch.Tensor  # [T, D]
    owner: torch.Tensor  # int64 [T], the picture of each caption
    target: torch.Tensor | None  # [D], the class vector of the attack's target; None without `triggered`
    names: torch.Tensor  # bool [T], whether a caption names the target as a word
    scale: float  # what the model multiplies cosines with

    def __post_init__(self) -> None:
        check_rows(self.images, "pictures")
        if self.triggered is not None:
            check_rows(self.triggered, "triggered pictures")
        check_rows(self.texts, "captions")
        if self.target is not None:
            check_rows(self.target, "the target")
        if not isfinite(self.scale):
            raise NotFinite(f"the model's scale is {self.scale}")


Number = float | list[float | None]  # a list holds one number for each class, or for each point of a curve
Measure = Callable[[Any], Mapping[str, Number]]  # of Encoded, or of Paired where the section reads captions

TRAINED, CENTRE, PROXY = "trained", "centre", "proxy"  # kinds of attack: as trained, in the middle, the defender's own
CONCEPT = "concept"  # a natural trigger, which nothing puts onto a picture; with the number of the attack, if that is said


class MeasureSection(BaseModel):
    """The parent of every measure's section: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    images: str = Field(description="name of an evaluation set in data.test")
    triggered: ClassVar[bool] = False
    reads: ClassVar[Literal["labels", "captions"]] = "labels"  # what the set's pictures must have

    @property
    def attack_kind(self) -> str:
        """Under which attack it looks at the triggered pictures: TRAINED, CENTRE, PROXY, or one of CONCEPT."""
        return TRAINED

    @property
    def sets(self) -> tuple[str, ...]:
        """The evaluation sets that it reads: the one that it measures and, if it is fitted, the one that it is fitted on, or
        the one that it compares with."""
        return tuple(name for name in (self.images, self.learns_from, self.clean_set) if name is not None)

    @property
    def learns_from(self) -> str | None:
        """The set that it is fitted on, if it is."""
        return None

    @property
    def clean_set(self) -> str | None:
        """The set of clean pictures that it compares with, if it does."""
        return None

    def prompts(self, classes: list[str], templates: list[str]) -> list[str] | None:
        """The texts that it reads beside the set's own prompts, K of each class, class by class; None if it reads none."""
        return None


class FittedSection(MeasureSection):
    """The parent of sections whose measure is fitted on the labelled pictures of another set."""

    train: str = Field(description="name of the set in data.test that it is fitted on, of the same classes")

    @model_validator(mode="after")
    def _is_judged_on_others(self) -> FittedSection:
        if self.train == self.images:
            raise ValueError(f"images and train are both '{self.train}'; fit it on another set than it is judged on")
        return self

    @property
    def learns_from(self) -> str:
        """The set that it is fitted on."""
        return self.train


def check_number(name: str, value: Number) -> None:
    """NotFinite if a measure's number is none."""
    if not all(one is None or isfinite(one) for one in (value if isinstance(value, list) else [value])):
        raise NotFinite(f"the number {name} is {value}")


def marked(seen: Encoded | Paired, kind: str) -> torch.Tensor:
    """[M, D]: the triggered pictures; ValueError naming the kind of measure if they are missing."""
    if seen.triggered is None:
        raise ValueError(f"{kind} needs the triggered pictures")
    return seen.triggered


def parts(encoded: Encoded, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(training rows, their labels, triggered pictures); ValueError naming the kind of measure if one is missing."""
    if encoded.fitted_on is None or encoded.triggered is None:
        raise ValueError(f"{kind} needs a training set and the triggered pictures")
    return *encoded.fitted_on, encoded.triggered
