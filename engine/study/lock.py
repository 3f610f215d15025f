"""Who carries out a run: one process at a time, however many are started, on however many machines share the folder.

A lock is a file in the run's folder, made so that it can be made only once; the highest number counts. Its owner touches it
every few seconds. A lock whose owner died (known at once on its own machine), or has not touched it for `STALE` seconds, is
taken over by whoever first makes the next number, so that two can never both own the run. An owner that was merely asleep
sees the higher number and ends. Ages are told by the clock of the file system, never by this machine's; since that clock may
jump, whoever takes over an old lock has first seen it untouched for `WATCH` seconds of its own.

A lock also keeps how many owners in turn died before this one without the run having come further. However often a machine
goes away, a run that comes further in between goes on.
"""

import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError

from records.json_file import Damaged, read_json, to_json

NAME = "claim"  # of the files, claim.1, claim.2, ...: processes that an earlier version started look for that name
HEARTBEAT = 5.0  # seconds between two touches
STALE = 90.0  # seconds without one after which the owner is taken for dead
WATCH = 3 * HEARTBEAT  # seconds for which a lock that looks old is watched before it is taken over
DEATHS = 5  # owners in turn that died before the run came further, after which it is taken to kill its process


@dataclass(frozen=True)
class LockOwner:
    """The process that owns, or last owned, a run."""

    number: int
    host: str
    pid: int
    age: float  # seconds since the last sign of life
    alive: bool
    here: bool  # on this machine, where its life is known
    deaths: int = 0  # of owners before it, without progress between
    progress: str = ""  # how far the run had come when it began


class LockFile(BaseModel):
    """What a lock file holds: the owner, told from all other processes on all machines, and since when it owns the run."""

    host: str = "?"
    machine: str = "?"
    pid: int = Field(0, ge=0, lt=2**31)
    began: float = Field(0.0, allow_inf_nan=False)
    since: str = "?"
    deaths: int = 0
    progress: str = ""

    @classmethod
    def of_this_process(cls, deaths: int = 0, progress: str = "") -> "LockFile":
        """That of a run which this process owns from now on."""
        machine = host = socket.gethostname()
        with suppress(OSError):  # containers on one machine have process numbers of their own
            machine = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
        began, since = psutil.Process().create_time(), time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(host=host, machine=machine, pid=os.getpid(), began=began, since=since, deaths=deaths, progress=progress)


def folder_time(folder: Path) -> float:
    """The time by the clock of the folder's file system."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _locks(folder: Path) -> list[tuple[int, Path]]:
    """The lock files of a run by number, the one that counts last."""
    matches = ((re.fullmatch(rf"{NAME}\.(\d+)", path.name), path) for path in folder.glob(f"{NAME}.*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def owner(folder: Path, clock: float | None = None) -> LockOwner | None:
    """Who owns a run, or owned it when he died; None if nobody does."""
    for number, path in reversed(_locks(folder)):
        try:
            age = (folder_time(folder) if clock is None else clock) - path.stat().st_mtime
            content = read_json(path, "")
            if content is None:
                raise FileNotFoundError(path)
            file = LockFile.model_validate(content)
        except FileNotFoundError:
            continue  # given back in this moment
        except (Damaged, ValidationError):
            file = LockFile()  # not yet written, or not as it was: as alive as it is young
        here = file.machine == LockFile.of_this_process().machine
        alive = _runs(file) if here else age < STALE
        return LockOwner(number, file.host, file.pid, max(0.0, age), alive, here, file.deaths, file.progress)
    return None


def running(study: Path) -> list[str]:
    """The names of a study's runs that living processes own."""
    folders = sorted({path.parent for path in study.glob(f"*/{NAME}.*")})
    return [folder.name for folder in folders if (process := owner(folder)) is not None and process.alive]


def _runs(file: LockFile) -> bool:
    """Whether the process of this machine that wrote the file is still there."""
    try:
        process = psutil.Process(file.pid)
        same = bool(abs(process.create_time() - file.began) < 1)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_untouched: dict[Path, tuple[float, float]] = {}  # locks that look old: (when touched, seen so since)


def _watched(path: Path) -> bool:
    """Whether the lock has stood untouched for `WATCH` seconds by this machine's steady clock; asked again and again."""
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return False
    before = _untouched.get(path)
    if before is None or before[0] != touched:
        _untouched[path] = touched, time.monotonic()
        return WATCH <= 0
    return time.monotonic() - before[1] >= WATCH


class Lock:
    """A run that this process owns, until `release` or its death."""

    def __init__(self, path: Path, number: int, deaths: int) -> None:
        self.path, self.number, self.deaths = path, number, deaths
        self.released = threading.Event()
        self.thread = threading.Thread(target=self._heartbeat, daemon=True)
        self.thread.start()

    def _heartbeat(self) -> None:
        while not self.released.wait(HEARTBEAT):
            with suppress(OSError):  # a disk that is away for a while: others wait STALE seconds
                if _locks(self.path.parent)[-1][0] > self.number:
                    print(
                        f"error: {self.path.parent} was taken over by another process, since this one gave no sign of life "
                        f"for {STALE:.0f} s; it goes on there",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(2)
                os.utime(self.path)

    def release(self) -> None:
        """Gives the run back, to the queue or as ended, and removes the locks of owners who died."""
        self.released.set()
        self.thread.join()
        for number, path in _locks(self.path.parent):
            if number <= self.number:  # ours last; and nobody's who took over
                path.unlink(missing_ok=True)


def acquire(folder: Path, progress: str = "") -> Lock | None:
    """The lock of a run that has come so far; None if another process owns it, or may yet. Of several that try at once one
    succeeds."""
    folder.mkdir(parents=True, exist_ok=True)
    last = owner(folder)
    if last is not None and (last.alive or not last.here and not _watched(folder / f"{NAME}.{last.number}")):
        return None
    number, deaths = 1, 0
    if last is not None:
        number, deaths = last.number + 1, last.deaths + 1 if last.progress == progress else 0
    path = folder / f"{NAME}.{number}"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(handle, "wb") as file:
        file.write(to_json(LockFile.of_this_process(deaths, progress).model_dump()))
    return Lock(path, number, deaths)
