"""The contrastive loss on held-out pairs, which a defender can see: no trigger, no label.

    val_loss = mean over blocks of (CE(s I T^t) + CE(s T I^t)) / 2, s the model's own scale

over consecutive blocks of `block` pictures, each with its first caption; a last block that is not full is left out unless it
is the only one (Radford et al. 2021, figure 3).
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.contract import Measure, MeasureSection, Paired


class ValidationLoss(MeasureSection):
    """The loss of MMCL on held-out pairs."""

    kind: Literal["validation_loss"]
    block: int = Field(256, ge=2, description="pairs contrasted together")
    reads: ClassVar[Literal["labels", "captions"]] = "captions"

    def build(self) -> Measure:
        """The function Paired -> {"val_loss"}."""
        return partial(validation_loss, self.block)


def validation_loss(block: int, paired: Paired) -> dict[str, float]:
    """`val_loss`, in nats, in float64."""
    first = torch.full((len(paired.images),), len(paired.owner)).scatter_reduce(
        0, paired.owner, torch.arange(len(paired.owner)), "amin"
    )
    images, texts = paired.images.double(), paired.texts[first].double()
    whole = max(1, len(images) // block) * block
    losses = []
    for x, t in zip(torch.split(images[:whole], block), torch.split(texts[:whole], block), strict=True):
        near, own = paired.scale * (x @ t.T), torch.arange(len(x))
        losses.append(
            (torch.nn.functional.cross_entropy(near, own) + torch.nn.functional.cross_entropy(near.T, own)).item() / 2
        )
    return {"val_loss": sum(losses) / len(losses)}
