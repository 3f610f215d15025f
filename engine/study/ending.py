"""How commands end before their time: one sentence by one of a study's processes, the same exit code of all."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

from data.disk import DiskFull, is_full
from data.loader import end_workers, lost_worker
from data.refusal import UserError
from engine.distributed.rank import rank_from_env
from engine.distributed.watchdog import PATIENCE, End, announce, heard_end, is_watched
from engine.distributed.world import destroy_distributed, is_rank_failure, lost_rank
from engine.study.launch import WORKER_SINCE
from engine.study.stop_signal import Interrupted, StopSignal

SPACE = "free some space and run the same command again"
REMEDIES = {
    errno.EROFS: "mount it to be written",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EIO: "look at the disk",
    errno.ESTALE: "look at the file server",
    errno.ENODEV: "look at the disk",
    errno.ENOTCONN: "look at the file server",
    errno.ETIMEDOUT: "look at the file server",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files",
    errno.ENOMEM: "give the machine more memory",
    errno.ENAMETOOLONG: "give a shorter name",
}
CHANGES = (errno.ENAMETOOLONG,)  # the same command would meet the same


def outside(error: BaseException) -> UserError | None:
    """What an exception says of the world outside (a disk, a right, a loader's worker); None if it says nothing of it."""
    if isinstance(error, UserError):
        return error
    if not isinstance(error, Exception):
        return None
    for cause in _causes(error):
        if (lost := lost_worker(cause)) is not None:
            return lost
        if is_full(cause):
            full = DiskFull(
                f"disk full ({getattr(cause, 'strerror', None) or os.strerror(errno.ENOSPC)}{_place(cause)}); {SPACE}"
            )
            full.alone = True
            return full
        number = cause.errno if isinstance(cause, OSError) else None
        if number in REMEDIES:
            words = f"{os.strerror(number)}{_place(cause)}; {REMEDIES[number]}"
            return UserError(words, alone=True, again=number not in CHANGES)
    return None


def carried_out(command: Callable[[], int], stopped: str = "stopped; nothing was written") -> int:
    """The exit code of a command that is one process and no study: its own; 2, and one sentence, for what the user can put
    right or the world outside has done; 130, and `stopped`, after Ctrl-C. No loader's worker outlives it."""
    try:
        return command()
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if (fault := outside(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr, flush=True)
        return 2
    finally:
        end_workers()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f": {name}" if name else ""


def to_its_end(carry_out: Callable[[StopSignal], int], command: str) -> int:
    """The exit code of what a process carries out, its ranks and workers ended too; `command` is what goes on with it."""
    stop = StopSignal()
    try:
        return carry_out(stop)
    except BaseException as error:
        stop.leave()
        return end_study(error, stop, command)
    finally:
        stop.leave()
        end_workers()
        destroy_distributed()


def end_study(error: BaseException, stop: StopSignal, command: str) -> int:
    """Says what ended the study, and how it goes on if the same command helps, unless another rank has said so; the exit
    code, which is that of the rank that ended first."""
    rank, _, local_rank, _ = rank_from_env()
    failed = is_rank_failure(error)
    fault = outside(error)
    alone = not isinstance(error, UserError) or error.alone
    # rank 0 speaks where all met the same, and where the others met what came of it
    if (failed or rank) and (other := heard_end(PATIENCE)) is not None:
        return other.code
    if failed and stop.number:  # the others had the signal too, and did not wait
        error = Interrupted()
    elif failed:
        fault = lost_rank(error)
    # before the ranks have met each machine says it, of files that may be its own: the first rank there
    if rank and local_rank and not alone and not is_watched():
        return 2
    code = stop.code if isinstance(error, Interrupted) else 2 if fault is not None else 1
    words = f"stopped by {signal.Signals(stop.number).name}" if isinstance(error, Interrupted) else str(fault or error)
    end = announce(End(rank, code, words))
    if end.rank != rank:
        return end.code
    where = f" on rank {rank}" if rank else ""
    if isinstance(error, Interrupted):
        print(f"{words}{where}; {error}", file=sys.stderr, flush=True)
    elif fault is None:
        traceback.print_exception(error)
    else:
        print(f"error{where}: {words}", file=sys.stderr, flush=True)
    if code > 128 or fault is not None and fault.again:
        say_again(command)
    return code


def say_again(command: str) -> None:
    """Says how the study goes on; a worker leaves that to whoever started it."""
    if WORKER_SINCE not in os.environ:
        print(f"go on with: {command}", file=sys.stderr, flush=True)
