"""Supervised fine-tuning of the picture tower, CleanCLIP's second defence (Bansal et al. 2023, arXiv 2303.03323).

    L = mean over the pictures with a label of CE(W I + b, label)

The head (W, b) stands on the embedding without any scale and is thrown away in the end; the text tower stays as it is, so
that the tower goes back to it for zero-shot classification. The published head stands on the embedding before that is put on
the unit sphere; objectives see unit rows, on which a head needs larger weights, so a larger rate than the published 1e-4 may
suit it. As published, W decays and b does not.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Learned, Need, Objective, ObjectiveSection, Terms

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Supervised(ObjectiveSection):
    """A classifier of labelled pictures on the picture tower; reads data.clean.labelled, and no captions."""

    kind: Literal["supervised"]
    classes: int = Field(ge=2, description="classes of the labelled pictures")
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    moves_texts: ClassVar[bool] = False

    @property
    def views(self) -> tuple[int, int]:
        """One picture, no caption."""
        return 1, 0

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """The head: weights [classes, D] from N(0, 0.01^2), which decay, and biases 0."""
        weight = torch.empty(self.classes, width).normal_(0, 0.01, generator=draw)
        return {
            "supervised.weight": Learned(weight, decays=True),
            "supervised.bias": Learned(torch.zeros(self.classes)),
        }

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(supervised)


def supervised(features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, `supervised`, which is the same, and `right`, the share of pictures that the head gets right."""
    assert features.labels is not None
    logits = torch.nn.functional.linear(
        features.images[0], features.learned["supervised.weight"], features.learned["supervised.bias"]
    )
    each = torch.nn.functional.cross_entropy(logits, features.labels, ignore_index=-1, reduction="none")
    labelled = features.labels >= 0
    loss = exchange.mean(each, labelled)
    right = exchange.mean((logits.argmax(1) == features.labels).to(logits.dtype), labelled)
    return {"loss": loss, "supervised": loss, "right": right}
