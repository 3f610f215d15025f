"""Pictures of many drawings by processes that may be lost: one that takes too long, or ends resvg, costs itself alone."""

import resource
import signal
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from data.icons.render import BadIcon, picture, resvg
from data.icons.sets import Drawing
from data.refusal import UserError

SECONDS = 10.0  # of a core, for one drawing; most take a few thousandths
MEMORY = 4 << 30  # bytes of address space of a process
LOST = 50  # drawings that may end their process; more is no fault of theirs
AHEAD = 3  # lists a process that are begun before the first of them is finished


@dataclass
class _Job:
    number: int
    drawings: list[Drawing]
    made: list[bytes | str] = field(default_factory=list)
    process: Any = None


class _Crew:
    """Processes at work."""

    def __init__(self, pixels: int, seed: int, seconds: float) -> None:
        self.pixels, self.seed, self.seconds, self.lost = pixels, seed, seconds, 0
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["data.icons.render"])
        self.running: dict[Connection, _Job] = {}

    def begin(self, job: _Job) -> None:
        """A process for what is left of a job."""
        theirs, ours = self.context.Pipe(duplex=False)
        left = job.drawings[len(job.made) :]
        job.process = self.context.Process(
            target=_draw, args=(ours, left, self.pixels, self.seed, self.seconds), daemon=True
        )
        job.process.start()
        ours.close()
        self.running[theirs] = job

    def take(self, pipe: Connection) -> _Job | None:
        """Takes what a process has to say; its job where that is finished."""
        job = self.running[pipe]
        if (message := _received(pipe)) is not None:
            job.made.append(message[1:] if message[:1] == b"+" else message[1:].decode())
            return None
        del self.running[pipe]
        pipe.close()
        job.process.join()
        if len(job.made) < len(job.drawings):
            self._lose(job)
        if len(job.made) == len(job.drawings):
            return job
        self.begin(job)
        return None

    def _lose(self, job: _Job) -> None:
        """Counts the drawing at which a process ended; UserError where that happens all the time."""
        drawing = job.drawings[len(job.made)]
        job.made.append("too_slow" if job.process.exitcode == -signal.SIGPROF else "renderer_died")
        self.lost += 1
        if self.lost > LOST:
            raise UserError(
                f"resvg ended its process at {self.lost} icons, the last {drawing.name} of {drawing.set}; install it anew, "
                "or give this machine more memory"
            )

    def end(self) -> None:
        """Ends what still runs."""
        for job in self.running.values():
            job.process.kill()
            job.process.join()


def pictures(
    lists: list[list[Drawing]], pixels: int, seed: int, workers: int, seconds: float = SECONDS
) -> Iterator[list[bytes | str]]:
    """For each list, in order, the JPEG of each drawing, or why there is none; the same for any number of workers."""
    resvg()
    crew = _Crew(pixels, seed, seconds)
    finished: dict[int, _Job] = {}
    waiting = deque(_Job(number, drawings) for number, drawings in enumerate(lists))
    given = 0
    try:
        while given < len(lists):
            while waiting and len(crew.running) < workers and waiting[0].number < given + AHEAD * workers:
                crew.begin(waiting.popleft())
            for pipe in wait(list(crew.running)):
                if (job := crew.take(pipe)) is not None:  # type: ignore[arg-type]
                    finished[job.number] = job
            while given in finished:
                yield finished.pop(given).made
                given += 1
    finally:
        crew.end()


def _received(pipe: Connection) -> bytes | None:
    """The next message; None at the end."""
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None


def _draw(out: Connection, drawings: list[Drawing], pixels: int, seed: int, seconds: float) -> None:
    """The work of a process: a message for each drawing, "+" and a JPEG or "-" and a word."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for drawing in drawings:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process, even inside of resvg
        try:
            message = b"+" + picture(drawing, pixels, seed)
        except BadIcon as bad:
            message = b"-" + str(bad).encode()
        except MemoryError:
            message = b"-too_much_memory"
        try:
            out.send_bytes(message)
        except OSError:
            return  # nobody waits for it any more
