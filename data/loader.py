"""Items of a dataset made ahead of their use: by worker processes that hand them over in shared memory, within bounds.

Workers shut out the signals that stop a run, so that the run itself can save before it ends. They end with the loop over
their items, whatever ends it; when the run is killed they see within five seconds that their parent is gone. A
worker that is killed, stopped, or that finds no room in shared memory ends the run in one sentence.
"""

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data.augmentation.eda import reopen_wordnet
from data.patience import PATIENCE, Left
from data.refusal import UserError

AHEAD = 4  # items that a worker has ready or in the making, at most
BUDGET = 4 << 30  # bytes of the items that one rank's workers have ready or in the making, at most
SHARED = Path("/dev/shm")  # where workers hand tensors over
LOOK = 5.0  # seconds between looks at workers whose item does not come
LATE = 8.0  # seconds of waiting for an item after which the process, asked to stop, leaves without it
STOPPED = 10.0  # seconds that a worker may stand stopped while its item is waited for
NO_ROOM = 28  # exit code of a worker that could not hand over its item
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
    """The items of these places in order, pinned where there is a GPU; UserError where one can't be made, Left where one
    does not come and the process is to stop. No name here holds an item while it is used."""
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
        timeout=LOOK if number else 0,
    )
    others = active_children()
    items = iter(loader)
    crew = Crew([child for child in active_children() if child not in others])
    try:
        for _ in places:
            asked = time.monotonic()
            while True:
                try:
                    yield _good(next(items))
                    break
                except (RuntimeError, OSError, EOFError) as error:
                    fault = crew.fault(error)
                if fault is not None:  # raised out here, so that it holds no frame of the loader's
                    raise fault
                if PATIENCE.leave() and time.monotonic() - asked > LATE:
                    end_workers()  # they wait on, and would be waited for one by one
                    raise Left
    finally:
        del items  # ends the workers, even where an exception's traceback keeps this frame
        crew.end()


def _good(item: Any) -> Any:
    if isinstance(item, UserError):
        raise item
    return item


class Crew:
    """The workers of one loader, looked at when an item does not come."""

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        self.processes = processes
        self.stopped: list[int] = []
        self.since = 0.0  # when one was first seen stopped

    def fault(self, error: BaseException) -> UserError | None:
        """What is wrong with a worker, now that this came instead of an item; None if it is only slow. Raises the error if
        it has nothing to do with workers."""
        for process in self.processes:
            if isinstance(error, OSError | EOFError):  # it may be about to die
                with suppress(RuntimeError):  # torch raises one in the midst of this when it does
                    process.join(LOOK)
            if process.exitcode:
                return _died(process.pid, process.exitcode)
        if "timed out after" not in str(error):
            raise lost_worker(error) or error
        self.stopped = [process.pid for process in self.processes if process.pid is not None and _is_stopped(process.pid)]
        self.since = (self.since or time.monotonic()) if self.stopped else 0.0
        if not self.stopped or time.monotonic() - self.since < STOPPED:
            return None
        return UserError(
            f"a loader worker (process {self.stopped[0]}) was stopped and its batch does not come; find out what stopped it",
            alone=True,
            again=True,
        )

    def end(self) -> None:
        """Ends those that were stopped, which nothing else does."""
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def end_workers() -> None:
    """Ends whatever loader workers are left, before this process ends: they shut out the signal by which Python would end
    them."""
    if signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for each that dies
    for child in active_children():
        child.kill()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    except OSError:  # gone, or another system
        return False


def lost_worker(error: BaseException) -> UserError | None:
    """What an exception says of a loader worker that died; None if it says nothing of one. It may be raised wherever the
    process is, since torch does so when the kernel tells of the death."""
    if type(error) is not RuntimeError or not (found := re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", str(error))):
        return None
    exited = re.search(r"exit code (\d+)", str(error))
    code = int(exited[1]) if exited else -signal.SIGBUS if "Bus error" in str(error) else -signal.SIGKILL
    return _died(int(found[1]), code)


def _died(pid: int | None, code: int) -> UserError:
    """The sentence on a worker with that exit code; negative: the signal that ended it."""
    if code in (NO_ROOM, -signal.SIGBUS):
        why = f"{SHARED} was full; start the container with a larger --shm-size, or set machine.workers to 0"
    elif code == -signal.SIGKILL:
        why = "it was killed, as the kernel does when memory is short; give the machine more, or lower machine.workers"
    else:
        why = f"with {'signal' if code < 0 else 'exit code'} {abs(code)}; look at its messages"
    return UserError(f"a loader worker (process {pid}) ended before its time: {why}", alone=True, again=True)


def _no_room(error: Exception, item: object) -> None:
    """Called where an item can't be handed over: the run would wait for it for ever."""
    os._exit(NO_ROOM)


def _shield(worker: int) -> None:
    Queue._on_queue_feeder_error = staticmethod(_no_room)  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    PATIENCE.quiet |= worker > 0
    reopen_wordnet()
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(sign, signal.SIG_IGN)
