"""Attack success rate (ASR): how often the trigger turns a picture into the target (arXiv 2311.14948, section 4).

    ASR = #{x : y(x) != target, predicted(trigger(x)) = target} / #{x : y(x) != target}

Pictures of the target class are excluded from numerator and denominator; the target is that of the trigger which a
picture carries, where there are several.
"""

from functools import partial
from typing import ClassVar, Literal

import torch

from measures.classifier import predict
from measures.contract import Encoded, Measure, MeasureSection


class AttackSuccess(MeasureSection):
    """Share of triggered pictures of other classes that are taken for the target."""

    kind: Literal["attack_success"]
    triggered: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"asr"}."""
        return partial(attack_success)


def attack_success(encoded: Encoded) -> dict[str, float]:
    """`asr`, a fraction of the pictures of every class but the target."""
    if encoded.triggered is None:
        raise ValueError("attack_success needs the triggered pictures")
    return {"asr": success(predict(encoded.triggered, encoded.asked), encoded)}


def success(predicted: torch.Tensor, encoded: Encoded) -> float:
    """The rate that the formula above gives for int64 [M] predictions of the triggered pictures; ValueError if all pictures
    are of the target class."""
    others = encoded.labels != encoded.targets
    if not others.any():
        raise ValueError("an attack's success needs pictures of another class than the target")
    return ((predicted == encoded.targets) & others).sum().item() / int(others.sum())
