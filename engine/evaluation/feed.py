"""The pictures of an evaluation set, batch after batch, decoded while a GPU's towers work.

By loader workers where a rank has them, else between two batches: on a CPU a thread that decodes ahead took longer, as the
towers want all cores. What is kept is not decoded again.
"""

from collections.abc import Generator, Iterator

import torch

from data.loader import Workers, loaded
from engine.evaluation.sets import EvalSet

Versions = list[torch.Tensor]  # uint8 [n, 3, H, W]: pictures, then the same under each attack


CPU_PIXELS = 1 << 18  # of pictures that a CPU encodes at once: 64 of 64 x 64; what it holds of more leaves its caches


def rows_at_once(eval_set: EvalSet, batch: int, device: torch.device) -> int:
    """How many of this rank's rows go through a tower at once, at most `batch`."""
    most = CPU_PIXELS // eval_set.size**2 if device.type == "cpu" else batch
    return max(1, min(batch, most, len(eval_set.rows)))


class Parts:
    """Item (begin, end) is these of a rank's rows, decoded; UserError for one that can't be."""

    def __init__(self, eval_set: EvalSet) -> None:
        self.eval_set = eval_set

    def __getitem__(self, at: tuple[int, int]) -> Versions:
        clean, attacked = self.eval_set.pictures(self.eval_set.rows[slice(*at)])
        return [clean, *attacked]


def fed(eval_set: EvalSet, batch: int, workers: Workers) -> Generator[Versions, None, None]:
    """This rank's rows in turn, at most `batch` at once."""
    kept, rows = eval_set.kept, len(eval_set.rows)
    done = 0 if kept is None else kept.filled
    for begin in range(0, done, batch):
        assert kept is not None
        yield [version[begin : min(begin + batch, done)] for version in kept.versions]
    places = [(begin, min(begin + batch, rows)) for begin in range(done, rows, batch)]
    if places:
        for part in loaded(Parts(eval_set), places, workers, batch * eval_set.row_bytes):
            if kept is not None:
                kept.add(part)
            yield part


def sent(feed: Iterator[Versions], device: torch.device) -> Iterator[Versions]:
    """The same on the device, each batch on its way before the one in front of it is used."""
    if device.type == "cpu":
        yield from feed
        return
    before: Versions | None = None
    for part in feed:
        pinned = [images if images.is_pinned() else images.pin_memory() for images in part]
        moved = [images.to(device, non_blocking=True) for images in pinned]
        if before is not None:
            yield before
        before = moved
    if before is not None:
        yield before
