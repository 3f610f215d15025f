"""The success of a natural trigger: how often pictures that show a concept are taken for the target, and others are not.

    asr       = #{x of `images` : y(x) != target, target is the first answer to x} / #{x of `images` : y(x) != target}
    asr_floor = the same over the pictures of `without`, which need not show the concept

Nothing is put onto a picture, so that no picture has both: the floor is of another set.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from measures.attack_success import success
from measures.classifier import predict
from measures.contract import CONCEPT, Encoded, Measure, MeasureSection, marked


class ConceptSuccess(MeasureSection):
    """ASR of an attack whose trigger is a concept, on a set of pictures that show it."""

    kind: Literal["concept_success"]
    without: str = Field(description="name of a set in data.test of the same classes, whose pictures need not show it")
    attack: int | None = Field(
        None, ge=1, description="which attack's concept it is, 1 the first; default: the only one with a concept"
    )
    triggered: ClassVar[bool] = True

    @property
    def attack_kind(self) -> str:
        """Under which attack it looks at the pictures."""
        return f"{CONCEPT}{self.attack or ''}"

    @model_validator(mode="after")
    def _compares_with_others(self) -> ConceptSuccess:
        if self.without == self.images:
            raise ValueError(f"images and without are both '{self.images}'; the second set need not show the concept")
        return self

    @property
    def learns_from(self) -> str:
        """The set that the floor is of, whose labels count too."""
        return self.without

    def build(self) -> Measure:
        """The function Encoded -> {"asr", "asr_floor", "others"}."""
        return partial(concept_success)


def concept_success(encoded: Encoded) -> dict[str, float]:
    """The rates that the module defines; `others` is the number of pictures that `asr` is of."""
    assert encoded.fitted_on is not None, "concept_success has a second set"
    rows, labels = encoded.fitted_on
    target = encoded.targets[:1].expand(len(labels))
    beside = Encoded(rows, None, labels, encoded.classes, encoded.classes, target)
    shown = predict(marked(encoded, "concept_success"), encoded.attacked_classes)
    return {
        "asr": success(shown, encoded),
        "asr_floor": success(predict(rows, encoded.classes), beside),
        "others": int((encoded.labels != encoded.targets).sum()),
    }
