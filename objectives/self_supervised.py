"""SSL: contrast each picture, each caption, or both, with its own augmented view.

    L = w * mean of [CE(s I I'^t), CE(s T T'^t)]                         one way: original queries, augmented keys
    CE(s A B^t) -> 1/2 [CE(s A B^t) + CE(s B A^t)]                       symmetric

I', T': embeddings of the augmented pictures and captions. One way and with the shared scale it is the self-supervised
term of CleanCLIP (Bansal et al. 2023, arXiv 2303.03323, eq. 3) and of arXiv 2311.14948 (eq. 2).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator

from objectives.contract import Features, Learned, Objective, ObjectiveSection, Terms
from objectives.infonce import infonce

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Ssl(ObjectiveSection):
    """Contrast pictures and captions with their own augmented views."""

    kind: Literal["ssl"]
    weight: float = Field(1.0, gt=0)
    image: bool = Field(True, description="contrast pictures with augmented pictures")
    text: bool = Field(True, description="contrast captions with augmented captions")
    direction: Literal["one_way", "symmetric"] = "one_way"
    temperature: Literal["shared", "own"] = Field("shared", description="the scale of the other terms, or one of its own")

    @model_validator(mode="after")
    def _contrasts_something(self) -> Ssl:
        if not (self.image or self.text):
            raise ValueError("image and text are both false, which leaves nothing to contrast; make one true")
        return self

    @property
    def views(self) -> tuple[int, int]:
        """Two of whatever is contrasted with itself."""
        return 1 + self.image, 1 + self.text

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
    terms = []
    if section.image:
        terms.append(sum(infonce(features.images[0], features.images[1], scale, exchange, want=wants[0])))
    if section.text:  # the augmented caption on the left, so that each tensor is gathered along one side of the grid only
        terms.append(sum(infonce(features.texts[1], features.texts[0], scale, exchange, want=wants[1])))
    mean = torch.stack([torch.as_tensor(term) for term in terms]).mean() / (1 + symmetric)
    return {"loss": section.weight * mean, "ssl": mean}
