"""Attack success rate (ASR): how often the trigger turns a picture into the target (arXiv 2311.14948, section 4).

    asr          = #{x : y(x) != target, target is the first answer to trigger(x)} / #{x : y(x) != target}
    asr_floor    = #{x : y(x) != target, target is the first answer to x} / #{x : y(x) != target}, without the trigger
    asr_top5     the same with the target among the first 5 answers; asr_top10 among the first 10
    asr_all      = #{x : target is the first answer to trigger(x)} / #{x}, pictures of the target class included, as in
                 BadCLIP's and PAR's code: its floor is the share of these pictures
    asr_diluted  = #{x : y(x) != target, target is the first answer to trigger(x)} / #{x}, as in CleanCLIP's probes: its
                 ceiling is the share of the other pictures
    robust_top1  = #{x : y(x) != target, y(x) is the first answer to trigger(x)} / #{x : y(x) != target}, BackdoorBench's
                 robust accuracy
    marked_top1  = #{x : y(x) is the first answer to trigger(x)} / #{x}, which CleanCLIP's zero-shot code prints for an ASR
    asr_of_3     where there are several targets: asr of the pictures whose target is class 3, counted from 0; so of each

The target is that of the trigger which a picture carries, where there are several. Each definition has its own name; the
first is the one that Antidote compares and judges by.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.classifier import depths, predict, ranks
from measures.contract import Encoded, Measure, MeasureSection, marked


class AttackSuccess(MeasureSection):
    """Share of triggered pictures of other classes that are taken for the target, in every definition in use."""

    kind: Literal["attack_success"]
    place: Literal["trained", "centre"] = Field(
        "trained", description="where the trigger is put: as in training, or always in the middle (numbers end in _centre)"
    )
    triggered: ClassVar[bool] = True

    @property
    def attack_kind(self) -> str:
        """Under which attack it looks at the pictures."""
        return self.place

    def build(self) -> Measure:
        """The function Encoded -> {"asr", "asr_top5", ...}, as the module says."""
        return partial(attack_success)


def attack_success(encoded: Encoded) -> dict[str, float]:
    """The rates that the module defines; `asr_top5` and `asr_top10` where there are more classes than that. `others` is the
    number of pictures of every class but the target."""
    triggered = marked(encoded, "attack_success")
    others = encoded.labels != encoded.targets
    predicted = predict(triggered, encoded.attacked_classes)
    out = {"asr": success(predicted, encoded), "asr_floor": success(predict(encoded.images, encoded.classes), encoded)}
    count, whole = int(others.sum()), len(others)
    places = ranks(triggered, encoded.attacked_classes, encoded.targets)
    for k in depths(len(encoded.attacked_classes))[1:]:
        out[f"asr_top{k}"] = ((places < k) & others).sum().item() / count
    out |= by_target(predicted, encoded)
    fooled, right = predicted == encoded.targets, predicted == encoded.labels
    return out | {
        "asr_all": fooled.sum().item() / whole,
        "asr_diluted": (fooled & others).sum().item() / whole,
        "robust_top1": (right & others).sum().item() / count,
        "marked_top1": right.sum().item() / whole,
        "others": count,
    }


def by_target(predicted: torch.Tensor, encoded: Encoded) -> dict[str, float]:
    """`asr_of_N`: the rate of the first formula over the other pictures whose target is class N; of one target nothing."""
    others = encoded.labels != encoded.targets
    counts, hits = (torch.bincount(encoded.targets[rows]) for rows in (others, others & (predicted == encoded.targets)))
    aimed = counts.nonzero().flatten().tolist()
    return {f"asr_of_{n}": int(hits[n]) / int(counts[n]) if n < len(hits) else 0.0 for n in aimed} if len(aimed) > 1 else {}


def success(predicted: torch.Tensor, encoded: Encoded) -> float:
    """The rate of the first formula for int64 [M] predictions of the pictures; ValueError if all pictures are of
    the target class."""
    others = encoded.labels != encoded.targets
    if not others.any():
        raise ValueError("an attack's success needs pictures of another class than the target")
    return ((predicted == encoded.targets) & others).sum().item() / int(others.sum())
