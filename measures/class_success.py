"""The attack's success class by class: which classes the trigger pulls to the target, and which resist.

    class_asr[c] = #{x : y(x) = c, the answer to trigger(x) = target} / #{x : y(x) = c}

over pictures whose target is another class; none for a class without such pictures.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch

from measures.classifier import predict
from measures.contract import Encoded, Measure, MeasureSection, marked


class ClassSuccess(MeasureSection):
    """ASR of every class by itself."""

    kind: Literal["class_success"]
    triggered: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"class_asr"}."""
        return partial(class_success)


def class_success(encoded: Encoded) -> dict[str, float | list[float | None]]:
    """`class_asr`, a fraction or None for each of the C classes."""
    others = encoded.labels != encoded.targets
    fooled = (predict(marked(encoded, "class_success"), encoded.attacked_classes) == encoded.targets) & others
    count = len(encoded.classes)
    counts = torch.bincount(encoded.labels[others], minlength=count).tolist()
    taken = torch.bincount(encoded.labels[fooled], minlength=count).tolist()
    return {"class_asr": [hit / of if of else None for hit, of in zip(taken, counts, strict=True)]}
