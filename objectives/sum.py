"""A weighted sum of objectives: L = sum_k w_k L_k. They share the towers, the scale and every gathered embedding."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from objectives.contract import Features, Learned, Need, Objective, ObjectiveSection, Terms
from objectives.registry import Single

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Part(ObjectiveSection):
    """One objective of a sum and its weight."""

    weight: float = Field(1.0, gt=0)
    objective: Annotated[Single, Field(discriminator="kind")]


class Sum(ObjectiveSection):
    """A weighted sum of objectives."""

    kind: Literal["sum"]
    parts: tuple[Part, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _flags_one_way(self) -> Self:
        flag = {(one.kind, getattr(one, "flags", "")) for one in objectives_of(self) if "flags" in one.needs}  # type: ignore[attr-defined]
        if len(flag) > 1:
            told = " and ".join(sorted(" ".join(names).strip() for names in flag))
            raise ValueError(f"parts say in different ways which pairs are flagged ({told}); give one of them")
        return self

    @property
    def views(self) -> tuple[int, int]:
        """As many as its most demanding part needs."""
        views = [part.objective.views for part in self.parts]
        return max(image for image, _ in views), max(text for _, text in views)

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """What any part needs."""
        return frozenset().union(*(part.objective.needs for part in self.parts))

    @property
    def moves_texts(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.objective.moves_texts for part in self.parts)

    @property
    def least_epochs(self) -> int:
        """The most that any part needs."""
        return max(part.objective.least_epochs for part in self.parts)

    def rate_share(self, epoch: int) -> float:
        """The smallest of its parts'."""
        return min(part.objective.rate_share(epoch) for part in self.parts)

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """What all parts learn; two of one kind share it."""
        return {name: learned for part in self.parts for name, learned in part.objective.learned(width, draw).items()}

    def memory(self, width: int) -> dict[str, torch.Tensor]:
        """What all parts remember."""
        return {name: value for part in self.parts for name, value in part.objective.memory(width).items()}

    def remember(self, features: Features, exchange: Exchange) -> dict[str, torch.Tensor]:
        """The memory of all parts after a step."""
        out = dict(features.memory)
        for part in self.parts:
            mine = part.objective.memory(1)
            out |= {name: value for name, value in part.objective.remember(features, exchange).items() if name in mine}
        return out

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(sum_of, tuple((part.weight, part.objective.build()) for part in self.parts))


def objectives_of(section: ObjectiveSection) -> list[ObjectiveSection]:
    """The section itself, or the parts of a sum."""
    return [part.objective for part in section.parts] if isinstance(section, Sum) else [section]


def sum_of(parts: tuple[tuple[float, Objective], ...], features: Features, exchange: Exchange) -> Terms:
    """Terms `loss` and those of every part; of terms with one name the last counts, `NAME.K` are the others."""
    terms: Terms = {}
    loss: torch.Tensor | None = None
    for number, (weight, objective) in enumerate(parts, 1):
        for name, value in objective(features, exchange).items():
            if name == "loss":
                loss = weight * value if loss is None else loss + weight * value
            else:
                terms[f"{name}.{number}" if name in terms else name] = value
    assert loss is not None
    return {"loss": loss, **terms}
