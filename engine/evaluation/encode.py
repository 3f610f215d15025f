"""What evaluation encodes, shared over ranks.

Rank r of W encodes the r-th of W equal runs of rows; the last is filled up with repeated rows, which are cut off after
the gather, so that every rank makes the same calls (ZeRO-3 needs that) and no picture counts twice.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from data.loader import Workers
from engine.distributed.collectives import gather_rows
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.feed import fed, rows_at_once, sent
from engine.evaluation.sets import EvalSet
from engine.models.heads import HeadParts, head_parts
from engine.models.towers import Piece, cut_of

ASKED = 4  # batches between two questions whether to leave
SCALE = 100.0  # what cosines are multiplied with where the objective learns no scale: CLIP's upper bound


class Cut(Exception):
    """The evaluation was cut short on all ranks, as one of them was asked to stop."""


@dataclass(frozen=True)
class Encoder:
    """A model under evaluation, on every rank."""

    towers: Any  # or DeepSpeed's engine around them
    tokenize: Callable[[list[str]], torch.Tensor]  # texts to int [n, L]
    world: World
    batch: int  # pictures or texts that go through a tower at once
    scale: float = SCALE  # what the model multiplies cosines with
    workers: Workers = Workers(0)  # that decode pictures
    leave: Callable[[], bool] = lambda: False  # whether to stop, the same on all ranks, which ask at the same places

    def go_on(self, number: int = 0) -> None:
        """Cut if it is time to leave; asked at every ASKED-th of numbered places."""
        if number % ASKED == 0 and self.leave():
            raise Cut

    def pictures(self, eval_set: EvalSet) -> list[torch.Tensor]:
        """Unit [M, D] of the pictures of a set, and of the same under each attack; on the CPU."""
        batch = rows_at_once(eval_set, self.batch, self.world.device)
        parts: list[list[torch.Tensor]] = [[] for _ in range(1 + len(eval_set.attacks))]
        with closing(fed(eval_set, batch, self.workers)) as feed:  # its workers end even if the towers raise
            for number, versions in enumerate(sent(feed, self.world.device)):
                self.go_on(number)
                for images, into in zip(versions, parts, strict=True):
                    heartbeat()
                    into.append(self.towers(images, None)[0])
        return [gather_rows(torch.cat(part))[: len(eval_set.image_set)].cpu() for part in parts]

    def mean_heads(self, eval_set: EvalSet) -> torch.Tensor:
        """[H, D]: the mean over a set's pictures of what each head of the last block adds to their embeddings."""
        real = min(len(eval_set.rows), max(0, len(eval_set.image_set) - self.world.rank * len(eval_set.rows)))
        total, done = torch.zeros(()), 0
        for versions, parts in self._seen(eval_set):
            heads = self._heads(parts, versions[0])[: max(0, real - done)].double()
            total, done = total + heads.sum(0), done + len(versions[0])
        return (gather_rows(total[None]).sum(0) / len(eval_set.image_set)).float().cpu()

    def head_agreements(self, eval_set: EvalSet, mean: torch.Tensor) -> list[torch.Tensor]:
        """[M, H] of the pictures of a set, and of the same under each attack: each head's part times the `mean` of it."""
        out: list[list[torch.Tensor]] = [[] for _ in range(1 + len(eval_set.attacks))]
        mean = mean.to(self.world.device)
        for versions, parts in self._seen(eval_set):
            for images, into in zip(versions, out, strict=True):
                into.append((self._heads(parts, images) * mean).sum(-1))
        return [gather_rows(torch.cat(part))[: len(eval_set.image_set)].cpu() for part in out]

    def _heads(self, parts: HeadParts, images: torch.Tensor) -> torch.Tensor:
        """[n, H, D] of pictures."""
        heartbeat()
        self.towers(images, None)
        return parts.taken()[:, : parts.count]

    def _seen(self, eval_set: EvalSet) -> Iterator[tuple[list[torch.Tensor], HeadParts]]:
        """A set's pictures as they come, and the parts of those that went through the towers last."""
        batch = rows_at_once(eval_set, self.batch, self.world.device)
        with head_parts(self.towers) as parts, closing(fed(eval_set, batch, self.workers)) as feed:
            for number, versions in enumerate(sent(feed, self.world.device)):
                self.go_on(number)
                yield versions, parts

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Unit [P, D] of all texts, on the CPU."""
        world = self.world
        share = -(-len(texts) // world.size)
        own = [texts[min(i, len(texts) - 1)] for i in range(world.rank * share, (world.rank + 1) * share)]
        tokens = self.tokenize(own).to(torch.int32)
        parts = []
        for number, begin in enumerate(range(0, share, self.batch)):
            self.go_on(number)
            heartbeat()
            part = tokens[begin : begin + self.batch]
            piece = [Piece(0, len(part), cut_of(part))]
            parts.append(self.towers(None, part.to(world.device), piece)[1])
        return gather_rows(torch.cat(parts))[: len(texts)].cpu()
