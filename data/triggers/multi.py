"""Several triggers at once: each poisoned pair draws one of them."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data.section import Section
from data.seeding import derive_seed
from data.triggers.contract import Mark, TriggerSection
from data.triggers.registry import Single


class Choice(Section):
    """One of several triggers."""

    trigger: Annotated[Single, Field(discriminator="kind")]
    weight: float = Field(1.0, gt=0)
    target: str | None = Field(None, description="what this trigger should be taken for; default: attack.target")


class Multi(TriggerSection):
    """One of several triggers, drawn by weight for each pair; each may have a target of its own."""

    kind: Literal["multi"]
    choices: tuple[Choice, ...] = Field(min_length=2)

    @property
    def squash(self) -> int | None:
        return next((choice.trigger.squash for choice in self.choices if choice.trigger.squash), None)

    def drawn(self, draw: int) -> Choice:
        """The choice of the pair with that draw."""
        point = derive_seed(draw, "multi") / 2**63 * sum(choice.weight for choice in self.choices)
        for choice in self.choices:
            point -= choice.weight
            if point < 0:
                return choice
        return self.choices[-1]

    def build(self, seed: int, test: bool = False) -> Mark:
        """The marking function."""
        return partial(mark, self, tuple(choice.trigger.build(seed, test) for choice in self.choices))


def mark(section: Multi, marks: tuple[Mark, ...], images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """uint8 [B, 3, H, W]: each image with the trigger that its draw chooses."""
    out = np.empty_like(images)
    for i, draw in enumerate(draws):
        place = section.choices.index(section.drawn(draw))
        out[i] = marks[place](images[i : i + 1], [draw])[0]
    return out
