"""What every objective promises.

An objective section says what it needs (`views`, `needs`, `learned`, `memory`) and has `build()`, which returns a
picklable function

    objective(features, exchange) -> Terms

of this rank's B pairs out of N = B * ranks. `Terms["loss"]` is this rank's share of the loss: **its mean over ranks is the
loss of the global batch, and so is the mean of its gradients**, which is how DeepSpeed and DDP combine them. What ranks
must tell each other goes through `exchange` (objectives/exchange.py). Objectives are pure: no input or output, no process
group, no random number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from objectives.exchange import Exchange


Terms: TypeAlias = "dict[str, torch.Tensor]"  # "loss" and its named parts, each a 0-d tensor, unweighted
Need = Literal["start", "labels", "flags", "poisoned"]


@dataclass(frozen=True)
class Learned:
    """A tensor that an objective learns beside the towers: a scale, a bias, the weights of a head."""

    initial: torch.Tensor
    low: float | None = None  # clamped to [low, high] after every step
    high: float | None = None
    decays: bool = False


@dataclass(frozen=True)
class Features:
    """What an objective sees of this rank's pairs: B rows, D width; the first view is the stored (or poisoned) pair."""

    images: tuple[torch.Tensor, ...]  # one [B, D] of unit rows for each view
    texts: tuple[torch.Tensor, ...]
    learned: Mapping[str, torch.Tensor]  # "scale" (log s, [1]) and whatever the section's `learned` names
    start: tuple[torch.Tensor, torch.Tensor] | None = None  # the frozen start's unit rows of the first view
    labels: torch.Tensor | None = None  # int64 [B], -1 where there is none
    flags: torch.Tensor | None = None  # bool [B], of pairs that are thought to be poisoned
    poisoned: torch.Tensor | None = None  # bool [B], the pairs of the poison plan
    memory: dict[str, torch.Tensor] = field(default_factory=dict)  # the same on every rank
    epoch: int = 1  # from 1

    @property
    def scale(self) -> torch.Tensor:
        """s = exp(log scale), 0-d, at most 100."""
        return self.learned["scale"].exp().squeeze()


Objective = Callable[[Features, "Exchange"], Terms]


class ObjectiveSection(BaseModel):
    """The parent of every objective's section: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    needs: ClassVar[frozenset[Need]] = frozenset()
    moves_texts: ClassVar[bool] = True  # whether the text tower learns; without it, no caption is read

    @property
    def views(self) -> tuple[int, int]:
        """(views of the picture, views of the caption)."""
        return 1, 1

    @property
    def least_epochs(self) -> int:
        """Fewer epochs would leave out what the objective is for."""
        return 0

    def rate_share(self, epoch: int) -> float:
        """Which share of the stage's rate is taken in an epoch, from 1."""
        return 1.0

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """What is learned beside the towers and the scale, by name; `width` is D."""
        return {}

    def memory(self, width: int) -> dict[str, torch.Tensor]:
        """What is remembered from step to step, as it is before the first."""
        return {}

    def remember(self, features: Features, exchange: Exchange) -> dict[str, torch.Tensor]:
        """The memory after a step that was taken on these features."""
        return features.memory
