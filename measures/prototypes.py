"""Classification by class means of training pictures, clean and under the trigger.

prototype_top1 = #{x : p(x) = y(x)} / #{x}, p(x) the class whose normalised mean of training pictures is nearest to x
prototype_asr  = #{x : y(x) != target, p(trigger(x)) = target} / #{x : y(x) != target}
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch

from measures.attack_success import success
from measures.classifier import predict
from measures.contract import Encoded, FittedSection, Measure, parts


class Prototypes(FittedSection):
    """Accuracy and ASR of the nearest class mean of training pictures."""

    kind: Literal["prototypes"]
    triggered: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"prototype_top1", "prototype_asr"}."""
        return partial(prototypes)


def prototypes(encoded: Encoded) -> dict[str, float]:
    """`prototype_top1`, a fraction of all M pictures, and `prototype_asr`, of those of every class but the target."""
    rows, labels, triggered = parts(encoded, "prototypes")
    known, place = torch.unique(labels, return_inverse=True)
    means = torch.nn.functional.normalize(
        torch.zeros(len(known), rows.shape[1], dtype=rows.dtype).index_add_(0, place, rows), dim=-1
    )
    right = known[predict(encoded.images, means)] == encoded.labels
    return {
        "prototype_top1": right.sum().item() / len(right),
        "prototype_asr": success(known[predict(triggered, means)], encoded),
    }
