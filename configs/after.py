"""What is asked of a cleaned model: does the backdoor come back?"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from configs.stage import Optimizer
from data.section import Section

Pairs = Annotated[int, Field(ge=0)]


class Perturbation(Section):
    """One faint change of all pictures for which the model answers the target, found by signed gradient steps on some
    pictures of an evaluation set and measured on others."""

    eps: tuple[Annotated[int, Field(ge=1, le=255)], ...] = Field((4, 8, 16), min_length=1, description="of 255, at most")
    steps: int = Field(40, ge=1)
    pictures: int = Field(256, ge=1, description="that it is found on, at most half of the set")
    batch: int = Field(64, ge=1, description="pictures of a step")


class After(Section):
    """Probes of the cleaned model that a rule chooses among those of each start and cleaner, and of its twin.

    Tuning on pairs of data.pretrain of which so many are poisoned; the line to the poisoned weights; weights in other
    formats; the average with the twin; BatchNorm's statistics made anew; a universal perturbation of pictures. Each is a run
    of the study.
    """

    choose: Literal["oracle", "accuracy", "val_loss", "distance", "proxy"] = Field(
        "oracle",
        description="which of the models that cleanings end with: the most accurate at ASR <= cap, or that of a rule which "
        "sees no ASR",
    )
    cap: float = Field(0.05, ge=0, le=1, description="of the oracle's choice")
    retune: tuple[Pairs, ...] = Field(
        (0, 1, 5, 25, 100), description="poisoned pairs among those tuned on, a run for each; 0: clean tuning"
    )
    optimizer: Optimizer = Field(description="of tuning, by MMCL")
    epochs: int = Field(5, ge=0, description="of tuning")
    batch: int | None = Field(None, ge=2, le=1 << 20, description="of tuning; default: clean.batch")
    pairs: int | None = Field(None, ge=1, description="tuned on, the poisoned ones among them; default: data.clean.pairs")
    line: int = Field(
        11, ge=0, le=1001, description="points on the line to the poisoned weights, both ends included; 0: none"
    )
    formats: tuple[Literal["int8", "bf16"], ...] = Field(("int8", "bf16"), description="of weights")
    average: bool = Field(True, description="of the cleaned model's weights and its twin's")
    norms: bool = Field(True, description="BatchNorm estimated anew on the pairs tuned on, where the model has one")

    perturb: Perturbation | None = Field(
        Perturbation(), description="a universal perturbation of triggered and of clean pictures; null: none"
    )

    @field_validator("retune")
    @classmethod
    def _in_order(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(numbers)))

    @model_validator(mode="after")
    def _fits(self) -> "After":
        if self.line == 1:
            raise ValueError("line is 1, but it has two ends; give at least 2 points, or 0 for none")
        if self.optimizer.state != "fresh":
            raise ValueError(f"optimizer.state is {self.optimizer.state}, but cleanings keep no moments; use fresh")
        return self
