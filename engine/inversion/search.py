"""The smallest stamp that brings all pictures to something: the search that DECREE and the target scan share.

    min over mask m, pattern p of   loss(rows of stamped pictures) + lambda |m|_1        m, p = (1 + tanh(.)) / 2

|m|_1 counts three channels. Adam takes a batch of pictures a step. lambda begins at `weight`; after more than `patience`
successes in a row it is multiplied by `factor`, after as many failures divided by it, down to `floor`. A step succeeds if
the batch's score is above the threshold; the smallest stamp of a success is kept, and the search ends `stall` steps after
it.
As in DECREE (Feng et al. 2023, arXiv 2303.15180) and its code, whose numbers are the defaults; there the rate falls after
200 and 500 of 1,000 passes over the pictures, here after the same shares of `steps`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from data.seeding import generator
from engine.inversion.stamp import Encode, Stamp

EDGE = 1e-4  # how near to 0 or 1 a first value may lie, so that its tanh has a gradient


class Search(NamedTuple):
    """How a stamp is searched for."""

    steps: int = 1000
    batch: int = 32  # pictures a step
    rate: float = 0.5
    weight: float = 1e-3  # lambda before the first step
    factor: float = 5.0
    patience: int = 5
    floor: float = 1e-7
    stall: int = 35

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        share = step / self.steps
        return self.rate if share < 0.2 else min(self.rate, 0.1) if share < 0.5 else min(self.rate, 0.05)


class Found(NamedTuple):
    """What a search came to: its smallest stamp that succeeded, or the last one if none did."""

    stamp: Stamp
    size: float  # |m|_1; of a search without success that of a mask of ones
    succeeded: bool
    steps: int


Judge = Callable[[torch.Tensor], tuple[torch.Tensor, float]]  # rows [n, D] -> (loss 0-d, score)
Watch = Callable[[int], None]  # is told how many steps of a search are done


class _Weight:
    """lambda, and what it was set by."""

    def __init__(self, search: Search) -> None:
        self.search, self.now = search, search.weight
        self.up = self.down = self.lowest = 0

    def note(self, success: bool) -> None:
        """Moves it after a step. Where it has come to its floor and all succeeds, it begins anew."""
        search = self.search
        self.lowest = self.lowest + 1 if success and self.now < search.floor else 0
        if self.lowest > 2 * search.patience:
            self.now, self.up, self.down = search.weight, 0, 0
        self.up, self.down = (self.up + 1, 0) if success else (0, self.down + 1)
        if self.up > search.patience:
            self.now, self.up = min(self.now * search.factor, 1e5), 0
        elif self.down > search.patience:
            self.now, self.down = self.now / search.factor if self.now >= search.floor else self.now, 0


def smallest_stamp(  # noqa: PLR0913  (each is another thing)
    encode: Encode,
    pictures: torch.Tensor,
    judge: Judge,
    threshold: float,
    search: Search,
    names: tuple[int | str, ...],
    watch: Watch = lambda step: None,
) -> Found:
    """The search over pictures, uint8 [N, 3, H, W] on the towers' device; `names` fix its first stamp and its batches."""
    device, size = pictures.device, pictures.shape[-2:]
    free = [_first(shape, names, device) for shape in (size, pictures.shape[1:])]
    adam = torch.optim.Adam(free, lr=search.rate, betas=(0.5, 0.9))
    weight, best, kept, since = _Weight(search), float("inf"), None, 0
    batches = _Batches(len(pictures), search.batch, names)
    step = 0
    for step in range(search.steps):
        for group in adam.param_groups:
            group["lr"] = search.rate_at(step)
        stamp = Stamp(*(0.5 + 0.5 * torch.tanh(part) for part in free))
        loss, score = judge(encode(pictures[batches.at(step).to(device)], stamp))
        adam.zero_grad()
        torch.autograd.backward(loss + weight.now * stamp.size)
        adam.step()
        mask_size, success = float(stamp.size.detach()), score > threshold
        since += kept is not None
        if success and mask_size < best:
            best, kept, since = mask_size, Stamp(*(part.detach() for part in stamp)), 0
        weight.note(success)
        watch(step + 1)
        if since >= search.stall:
            break
    last = Stamp(*(0.5 + 0.5 * torch.tanh(part.detach()) for part in free))
    whole = 3.0 * size[0] * size[1]
    return Found(kept or last, whole if kept is None else best, kept is not None, step + 1)


class _Batches:
    """Which pictures each step takes: each pass in an order of its own, whatever machine it is."""

    def __init__(self, count: int, batch: int, names: tuple[int | str, ...]) -> None:
        self.count, self.batch, self.names = count, min(batch, count), names
        self.order: dict[int, Any] = {}

    def at(self, step: int) -> torch.Tensor:
        """int64 [batch]; a pass that does not end with a whole batch is cut."""
        steps = self.count // self.batch
        number, place = divmod(step, steps)
        if number not in self.order:
            self.order = {number: generator(*self.names, "pass", number).permutation(self.count)}
        return torch.from_numpy(self.order[number][place * self.batch : (place + 1) * self.batch])


def _first(shape: torch.Size, names: tuple[int | str, ...], device: torch.device) -> torch.Tensor:
    """What tanh makes values of that are drawn evenly from 0 to 1."""
    draw = generator(*names, "first", len(shape))
    values = np.arctanh((2 * draw.random(tuple(shape)) - 1) * (1 - EDGE))
    return torch.from_numpy(values.astype(np.float32)).to(device).requires_grad_()
