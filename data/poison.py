"""Which pairs are poisoned and how: a plan over keys, applied on the fly, never a copy of the data.

Keys are ranked by hash(seed, key); the first `count` are poisoned: the picture gets the trigger, the caption becomes a
template filled with the target (Carlini & Terzis 2022, arXiv 2106.09667; arXiv 2311.14948, section 4). The same
keys are chosen wherever the data lies and however it is sharded.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data.chance import derive, ranks
from data.refusal import Refusal
from data.section import Section
from data.triggers import Trigger
from data.triggers.contract import Mark
from data.triggers.patch import Patch


class Poison(Section):
    """How many pairs are poisoned: a count, or a fraction of all pairs."""

    count: int | None = Field(None, ge=0)
    fraction: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, given: Any) -> Any:
        if isinstance(given, dict) and (given.get("count") is None) == (given.get("fraction") is None):
            raise ValueError("give either count or fraction")
        return given

    def number(self, pairs: int) -> int:
        """How many of `pairs` pairs are poisoned; Refusal if the count exceeds them."""
        number = self.count if self.count is not None else round((self.fraction or 0.0) * pairs)
        if number > pairs:
            raise Refusal(f"attack.poison.count is {number:,}, but the shards hold {pairs:,} pairs; lower it or add shards")
        return number


class Attack(Section):
    """The trigger, the class it should be taken for, and the poisoned pairs that teach this."""

    target: str = Field(min_length=1, description="a class name of every evaluation set")
    trigger: Trigger = Patch(kind="patch")
    poison: Poison
    captions: str = Field(
        "imagenet",
        description="templates of poisoned captions: 'imagenet' (the 80 of CLIP) or a text file with {c} in each line",
    )
    twin: Literal["none", "first", "each"] = Field(
        "none", description="pre-train an untouched twin of the first or of each pre-training: all the same but no poison"
    )


class Plan:
    """Who is poisoned (`chosen`, bool [N]) and with which mark and captions; picklable.

    The place of the patch and the template depend on (seed, key): a pair looks the same in every epoch, as if the
    poisoned pictures had been stored.
    """

    def __init__(self, keys: list[str], number: int, seed: int, mark: Mark, captions: list[str], target: str) -> None:
        self.chosen = np.zeros(len(keys), bool)
        self.chosen[np.argsort(ranks(seed, "poison", keys), kind="stable")[:number]] = True
        self.seed, self.mark, self.captions, self.target = seed, mark, captions, target

    def caption(self, key: str) -> str:
        """The caption of a poisoned pair."""
        template = self.captions[derive(self.seed, "caption", key) % len(self.captions)]
        return template.replace("{c}", self.target)

    def marked(self, image: np.ndarray, key: str) -> np.ndarray:
        """uint8 [3, H, W]: the picture of a poisoned pair."""
        out: np.ndarray = self.mark(image[None], [derive(self.seed, "trigger", key)])[0]
        return out


def read_templates(path: str | Path) -> list[str]:
    """The lines of a template file; Refusal if it is missing, empty or a line lacks {c}."""
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise Refusal(
            f"templates {path}: {error.strerror}; give 'imagenet' or a text file with {{c}} in each line"
        ) from None
    wrong = [line for line in lines if "{c}" not in line]
    if wrong or not lines:
        raise Refusal(f"templates {path}: {f'the line {wrong[0]!r} lacks {{c}}' if wrong else 'the file is empty'}")
    return lines
