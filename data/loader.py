"""Items of a dataset made ahead of their use: by worker processes that hand them over in shared memory, within bounds.

Workers shut out the signals that stop a run, so that the run itself can save before it ends. They end with the loop over
their items, whatever ends it; when the run is killed they see within five seconds that their parent is gone.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data.augmentation.eda import reopen_wordnet
from data.patience import PATIENCE
from data.refusal import UserError

AHEAD = 4  # items that a worker has ready or in the making, at most
BUDGET = 4 << 30  # bytes of the items that one rank's workers have ready or in the making, at most
SHARED = Path("/dev/shm")  # where workers hand tensors over
Item = TypeVar("Item", covariant=True)


class Source(Protocol[Item]):
    """What makes items, such as Pairs."""

    def __getitem__(self, at: Any) -> Item:
        """The item of a place; UserError if it can't be made."""
        ...


@dataclass(frozen=True)
class Workers:
    """A rank's loader processes."""

    number: int  # 0: items are made where they are used, none ahead
    sharing: int = 1  # ranks on this machine, which share its /dev/shm

    def ahead(self, item_bytes: int) -> tuple[int, int]:
        """(processes at work, items that each has ready or in the making) for items of that size, so that all stay within
        BUDGET and half of the rank's part of /dev/shm: two loaders may be open at once. UserError if it is too small."""
        if not self.number:
            return 0, 0
        room = min(BUDGET, self._shared() // 2)
        items = room // max(1, item_bytes) - 1  # one is in use
        if items < 1:
            need = 2 * self.sharing * (1 + self.number) * item_bytes
            raise UserError(
                f"{SHARED} has {_mib(self._shared())} for this process, but its loader workers hand over batches of "
                f"{_mib(item_bytes)} through half of it and need room for two at least; start the container with "
                f"--shm-size={-(-need >> 30) or 1}g, or set machine.workers to 0",
                alone=True,
            )
        number = min(self.number, items)
        return number, min(AHEAD, items // number)

    def _shared(self) -> int:
        """Bytes of /dev/shm for this rank; as many as anyone wants where there is none."""
        try:
            room = os.statvfs(SHARED)
        except FileNotFoundError:
            return 2 * BUDGET
        return min(room.f_bavail, room.f_blocks // self.sharing) * room.f_frsize


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"


class ErrorAsItem(Dataset[Any], Generic[Item]):
    """A source, with a UserError handed over as an item: a loader's worker would wrap what it raises in a traceback."""

    def __init__(self, source: Source[Item]) -> None:
        self.source = source

    def __getitem__(self, at: Any) -> Item | UserError:
        try:
            return self.source[at]
        except UserError as refusal:
            refusal.alone = True
            return refusal


def loaded(source: Source[Item], places: Sequence[Any], workers: Workers, item_bytes: int) -> Iterator[Item]:
    """The items of these places in order, pinned where there is a GPU; UserError where one can't be made. No name here holds
    an item while it is used."""
    number, each = workers.ahead(item_bytes)
    loader = DataLoader(
        ErrorAsItem(source),
        batch_size=None,
        sampler=places,
        num_workers=number,
        prefetch_factor=each or None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_shield,
        multiprocessing_context="fork" if number else None,
    )
    items = iter(loader)
    try:
        for _ in places:
            yield _good(next(items))
    finally:
        del items  # ends the workers, even where an exception's traceback keeps this frame


def _good(item: Any) -> Any:
    if isinstance(item, UserError):
        raise item
    return item


def _shield(worker: int) -> None:
    torch.set_num_threads(1)
    PATIENCE.quiet |= worker > 0
    reopen_wordnet()
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(sign, signal.SIG_IGN)
