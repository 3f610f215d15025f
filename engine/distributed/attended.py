"""What rank 0 does alone for long while the others wait: all ask meanwhile, at the same moments, whether to leave.

The action knows nothing of it: between any two calls of Python functions in it, once PAUSE seconds are over, rank 0 asks, by
the interpreter's profiling hook, and the others with it. So a library's fit of an hour is left within seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch.distributed as dist

from engine.distributed.collectives import all_reduce_sum, on_rank_0
from engine.distributed.watchdog import heartbeat

PAUSE = 1.0  # seconds between two questions
T = TypeVar("T")


def attended(action: Callable[[], T], ask: Callable[[], None]) -> T:
    """What rank 0's action returns, on every rank; an exception on rank 0 is raised on every rank. Every PAUSE seconds all
    ranks `ask`, which may raise, on all of them at once; that ends the action wherever it stands, and is raised here."""
    if dist.is_initialized() and dist.get_rank():
        while all_reduce_sum([0])[0]:
            heartbeat()
            ask()
        return on_rank_0(action)  # which it leaves to rank 0

    cut: BaseException | None = None
    value, failure = cast(T, None), None

    def beat() -> None:
        nonlocal cut
        all_reduce_sum([1])
        heartbeat()
        try:
            ask()
        except BaseException as error:
            cut = error
            raise

    try:
        with _between_calls(beat):
            value = action()
    except Exception as error:
        failure = error
    if cut is not None:
        raise cut  # whatever the action made of it: the others are gone
    all_reduce_sum([0])
    return on_rank_0(partial(_told, value, failure))


def _told(value: T, failure: Exception | None) -> T:
    if failure is not None:
        raise failure
    return value


@contextmanager
def _between_calls(beat: Callable[[], None]) -> Iterator[None]:
    """Calls `beat` every PAUSE seconds between two calls of Python functions in here."""
    before, last = sys.getprofile(), time.monotonic()

    def hook(frame: Any, event: str, given: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            beat()
            last = time.monotonic()

    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(before)
