"""Classification by the vote of the nearest training pictures, clean and under the trigger.

    nn_top1 = #{x : nn(x) = y(x)} / #{x}, nn(x) the class of most of the k training pictures nearest to x by cosine
    nn_asr  = #{x : y(x) != target, nn(trigger(x)) = target} / #{x : y(x) != target}

It does not ask the text tower, so it tells an attack that moves pictures among the target's pictures from one that moves
them to the target's words. Of classes with equally many neighbours the one with the nearest neighbour wins.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from measures.attack_success import success
from measures.contract import Encoded, FittedSection, Measure, parts

ROWS = 512  # pictures compared with the whole training set at a time


class Neighbours(FittedSection):
    """Accuracy and ASR of the vote of the k nearest training pictures."""

    kind: Literal["neighbours"]
    k: int = Field(50, ge=1, description="neighbours that vote; all where the training set is smaller")
    triggered: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"nn_top1", "nn_asr"}."""
        return partial(neighbours, self.k)


def neighbours(k: int, encoded: Encoded) -> dict[str, float]:
    """`nn_top1`, a fraction of all M pictures, and `nn_asr`, of those of every class but the target."""
    rows, labels, triggered = parts(encoded, "neighbours")
    right = vote(encoded.images, rows, labels, k) == encoded.labels
    return {"nn_top1": right.sum().item() / len(right), "nn_asr": success(vote(triggered, rows, labels, k), encoded)}


def vote(images: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """int64 [M]: the class that most of the k rows [K, D] nearest to each picture [M, D] have; `labels` int64 [K]."""
    count, k = int(labels.max()) + 1, min(k, len(rows))
    out = []
    for part in torch.split(images, ROWS):
        found = labels[(part @ rows.T).topk(k, dim=1).indices]  # nearest first
        votes = torch.zeros(len(part), count).scatter_add_(1, found, torch.ones(found.shape))
        leads = votes.gather(1, found) == votes.max(1, keepdim=True).values
        out.append(found.gather(1, leads.float().argmax(1, keepdim=True))[:, 0])
    return torch.cat(out)
