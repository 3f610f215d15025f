"""What every objective promises.

An objective section names the views it needs (`views`) and has `build()`, which returns a picklable function

    objective(features, gather, rank) -> Terms

of this rank's B pairs out of N = B * ranks. `gather` turns [B, ...] into [N, ...] with gradients: the gradient of a
gathered row flows back to the rank that holds it. `Terms["loss"]` is this rank's share of the loss: **its mean over
ranks is the loss of the global batch, and so is the mean of its gradients**, which is how DeepSpeed and DDP combine
them. Objectives are pure: no input or output, no process group, no random number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict

Gather = Callable[[torch.Tensor], torch.Tensor]
Terms = dict[str, torch.Tensor]  # "loss" and its named parts, each a 0-d tensor, unweighted


@dataclass(frozen=True)
class Features:
    """Unit rows of this rank and the learned scale; B pairs, V views, D width."""

    images: torch.Tensor  # [V, B, D]
    texts: torch.Tensor  # [V, B, D]
    scale: torch.Tensor  # s = exp(logit scale), 0-d, at most 100


Objective = Callable[[Features, Gather, int], Terms]


class ObjectiveSection(BaseModel):
    """The parent of every objective's section: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    views: ClassVar[int] = 1
