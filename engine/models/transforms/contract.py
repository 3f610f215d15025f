"""What a transform is: it changes the start's weights before the first step, the one thing that a cleaner may do beside its
training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from data.loader import Workers
from data.pipeline import Batch, Batches, batches
from data.progress import Progress
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.models.towers import Towers
from objectives.contract import Learned

Scalars = dict[str, torch.Tensor]  # "scale" and "bias" as they were stored with the start's weights, if they were: [1] each


@dataclass(frozen=True)
class CleanPairs:
    """The stage's own pairs in its own order, and how many of them are worked on at once."""

    dataset: Batches
    batch: int  # pairs of a global batch
    workers: Workers  # of each rank
    eval_rows: int  # pictures that a tower encodes at once where no gradient is asked for
    grad_rows: int  # where one is

    def first_batches(self, count: int, title: str, world: World) -> Iterator[tuple[int, Batch]]:
        """(step, this rank's part of the batch, first views alone) of the first `count` batches; shows how far it is."""
        progress = Progress(title, "batches") if world.first else None
        epochs = -(-count // self.dataset.steps)
        for step, batch in islice(batches(self.dataset, epochs, 0, self.workers), count):
            yield step, batch.first()
            heartbeat()
            if progress is not None:
                progress(step + 1, count)
        if progress is not None:
            progress.end()


@dataclass(frozen=True)
class TransformInputs:
    """What a transform may look at beside the weights."""

    model: str  # open_clip's name of it
    seed: int
    fresh: Mapping[str, Learned]  # what the objective learns beside the towers, as it is without a start
    pairs: CleanPairs
    world: World


# changes the towers in place; gives the scalars after it, and what was done in words where its section does not say it
Transform = Callable[[Towers, Scalars, TransformInputs], tuple[Scalars, str | None]]
