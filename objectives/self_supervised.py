"""SSL: contrast each picture, each caption, or both, with its own augmented view.

    L = w * 1/2 [p CE(s I I'^t) + c CE(s T T'^t)]                        one way: original queries, augmented keys
    CE(s A B^t) -> 1/2 [CE(s A B^t) + CE(s B A^t)]                       symmetric

I', T': embeddings of the augmented pictures and captions; p, c = 1, `pictures` and `captions`. A part of weight 0 is not
computed and the other stays as it was; of `image` and `text` one that is false leaves the other whole, without the 1/2.
One way and with the shared scale it is the self-supervised term of CleanCLIP (Bansal et al. 2023, arXiv 2303.03323, eq. 3)
and of arXiv 2311.14948 (eq. 2).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator

from objectives.contract import Features, Learned, Need, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class WithinModality(ObjectiveSection):
    """The parent of sections with this term: what of a batch it contrasts."""

    # fields of their defaults are left out where a section is written down: specs from before these fields keep their
    # fingerprints
    pictures: float = Field(
        1.0, ge=0, exclude_if=lambda weight: weight == 1, description="p, weight of the picture-picture part"
    )
    captions: float = Field(
        1.0, ge=0, exclude_if=lambda weight: weight == 1, description="c, weight of the caption-caption part"
    )
    poisoned: Literal["contrasted", "left_out"] = Field(
        "contrasted",
        exclude_if=lambda choice: choice == "contrasted",
        description="left_out: pairs of the poison plan are in no part of the within-modality term, so that it never sees a "
        "trigger; a control of an experimenter who knows the plan, which no trainer does",
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not (self.pictures or self.captions):
            raise ValueError("pictures and captions are both 0, which leaves nothing to contrast; give one a weight")
        return self

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """Which pairs are poisoned, if they are left out."""
        return frozenset({"poisoned"}) if self.poisoned == "left_out" else frozenset()


class Ssl(WithinModality):
    """Contrast pictures and captions with their own augmented views."""

    kind: Literal["ssl"]
    weight: float = Field(1.0, gt=0)
    image: bool = Field(True, description="contrast pictures with augmented pictures")
    text: bool = Field(True, description="contrast captions with augmented captions")
    direction: Literal["one_way", "symmetric"] = "one_way"
    temperature: Literal["shared", "own"] = Field("shared", description="the scale of the other terms, or one of its own")

    @model_validator(mode="after")
    def _contrasts_something(self) -> Self:
        if not (self.image or self.text):
            raise ValueError("image and text are both false, which leaves nothing to contrast; make one true")
        for name, whether, weight in (("pictures", "image", self.pictures), ("captions", "text", self.captions)):
            if weight != 1 and not getattr(self, whether):
                raise ValueError(f"{name} is {weight:g}, but {whether} is false, which takes that part out; leave one out")
        if self.views == (1, 1):
            raise ValueError("of pictures and captions the one that is left has weight 0, which leaves nothing to contrast")
        return self

    @property
    def views(self) -> tuple[int, int]:
        """Two of whatever is contrasted with itself."""
        return 1 + bool(self.image and self.pictures), 1 + bool(self.text and self.captions)

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """Its own scale, if it has one."""
        if self.temperature == "shared":
            return {}
        return {"ssl_scale": Learned(torch.tensor([math.log(1 / 0.07)]), 0.0, math.log(100.0))}

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(ssl, self)


def ssl(section: Ssl, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss` and `ssl`."""
    own, symmetric = section.temperature == "own", section.direction == "symmetric"
    scale = features.learned["ssl_scale"].exp().squeeze() if own else features.scale
    wants: tuple[Literal["both", "forth", "back"], ...] = ("both", "both") if symmetric else ("forth", "back")
    kept = None
    if section.poisoned == "left_out":
        assert features.poisoned is not None
        kept = ~features.poisoned
    terms, (images, texts) = [], section.views
    if images > 1:
        first, second = features.images[:2]
        terms.append(section.pictures * sum(infonce(first, second, scale, exchange, kept, wants[0])))
    if texts > 1:  # the augmented caption on the left, so that each tensor is gathered along one side of the grid only
        terms.append(section.captions * sum(infonce(features.texts[1], features.texts[0], scale, exchange, kept, wants[1])))
    mean = torch.stack([torch.as_tensor(term) for term in terms]).sum() / (section.image + section.text) / (1 + symmetric)
    return {"loss": section.weight * mean, "ssl": mean}
