"""Who carries out a run: one process at a time, however many are started, on however many machines share the folder.

A claim is a file `claim.N` in the run's folder, made so that it can be made only once; the highest N counts. Its holder
touches it every few seconds. A claim whose holder died (known at once on its own machine), or has not touched it for `LOST`
seconds, is taken over by whoever first makes the next number, so that two can never both do it. A holder that was merely
asleep sees the higher number and ends. Ages are told by the clock of the file system, never by this machine's.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EVERY = 5.0  # seconds between two touches
LOST = 90.0  # seconds without one after which the holder is taken for dead
DEATHS = 5  # takeovers after which a run is taken to kill its process


@dataclass(frozen=True)
class Holder:
    """Who holds, or last held, a run."""

    number: int
    host: str
    pid: int
    since: str
    age: float  # seconds since the last sign of life
    alive: bool


def here() -> dict[str, Any]:
    """What tells this process from all others on all machines."""
    machine = host = socket.gethostname()
    with suppress(OSError):  # containers on one machine have process numbers of their own
        machine = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return {"host": host, "machine": machine, "pid": os.getpid(), "began": psutil.Process().create_time()}


def now(folder: Path) -> float:
    """The time by the clock of the folder's file system."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _claims(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(match[1]), path) for path in folder.glob("claim.*") if (match := re.fullmatch(r"claim\.(\d+)", path.name))]
    return sorted(found)


def holder(folder: Path, clock: float | None = None) -> Holder | None:
    """Who holds a run, or held it when he died; None if nobody does."""
    for number, path in reversed(_claims(folder)):
        try:
            age = (now(folder) if clock is None else clock) - path.stat().st_mtime
            told = json.loads(path.read_text() or "{}")
        except FileNotFoundError:
            continue  # given back in this moment
        except ValueError:
            told = {}
        # a claim that is not yet written is as alive as it is young
        return Holder(
            number, told.get("host", "?"), told.get("pid", 0), told.get("since", "?"), max(0.0, age), _alive(told, age)
        )
    return None


def _alive(told: dict[str, Any], age: float) -> bool:
    me = here()
    if told.get("machine") == me["machine"]:
        try:
            process = psutil.Process(told["pid"])
            same = bool(abs(process.create_time() - told["began"]) < 1)
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    return age < LOST


class Claim:
    """A run that this process holds, until `release` or its death."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        while not self.done.wait(EVERY):
            with suppress(OSError):  # a disk that is away for a while: others wait LOST seconds
                if _claims(self.path.parent)[-1][0] > self.number:
                    print(
                        f"error: {self.path.parent} was taken over by another process, since this one gave no sign of life "
                        f"for {LOST:.0f} s; it goes on there",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(2)
                os.utime(self.path)

    def release(self) -> None:
        """Gives the run back, to the queue or as ended, and removes the traces of holders who died."""
        self.done.set()
        self.thread.join()
        for number, path in _claims(self.path.parent):
            if number <= self.number:  # ours last; and nobody's who took over
                path.unlink(missing_ok=True)


def take(folder: Path) -> Claim | None:
    """The claim of a run; None if another process holds it. Of several that try at once one succeeds."""
    folder.mkdir(parents=True, exist_ok=True)
    held = holder(folder)
    if held is not None and held.alive:
        return None
    number = (held.number if held is not None else 0) + 1
    path = folder / f"claim.{number}"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(handle, "w") as file:
        json.dump({**here(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
    return Claim(path, number)
