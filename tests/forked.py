"""Commands of ours as subprocess runs them, forked from a server that has done their imports (tests/forkserver.py)."""

import array
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, CompletedProcess, TimeoutExpired
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
HANGS = 600.0  # seconds after which what takes a few is taken to hang: with a load of 20 it takes that much longer
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "LOCAL_SIZE")


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: this interpreter first on the PATH, no leftovers of a launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "CUDA_VISIBLE_DEVICES": "", **more}


@cache
def server() -> str:
    """The socket of this process's server, which is started now."""
    folder = tempfile.TemporaryDirectory(prefix="antidote-fork-")
    path = f"{folder.name}/socket"
    single = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}  # no pool of theirs before the fork
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/forkserver.py"), path],
        stdin=PIPE,
        stdout=PIPE,
        env=environment(**single),
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"

    def stop() -> None:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        folder.cleanup()

    atexit.register(stop)
    return path


class Popen:
    """Like subprocess.Popen of [sys.executable, ...]; text alone."""

    def __init__(
        self,
        args: list[str],
        cwd: Path | str | None = None,
        env: dict[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        text: bool = True,
        start_new_session: bool = False,
    ) -> None:
        assert args[0] == sys.executable, args
        self.args, self.returncode = args, None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        given, ours = self._streams(stdout, stderr)
        env = dict(environment() if env is None else env)
        if "ANTIDOTE_COVERAGE" in os.environ:
            env["ANTIDOTE_COVERAGE"] = os.environ["ANTIDOTE_COVERAGE"]
        request = {
            "words": [str(word) for word in args[1:]], "cwd": str(cwd or os.getcwd()), "env": env,
            "session": start_new_session,
        }  # fmt: skip
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server())
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
        body = (json.dumps(request) + "\n").encode()
        sent = self._connection.sendmsg([body], rights)
        self._connection.sendall(body[sent:])
        for stream in ours:
            os.close(stream)
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())
        self._ended = threading.Event()
        self._code = 1
        threading.Thread(target=self._listen, daemon=True).start()

    def _streams(self, stdout: Any, stderr: Any) -> tuple[list[int], list[int]]:
        """(the descriptors of the child's standard streams, those of them that are ours to close)."""
        given, ours = [os.open(os.devnull, os.O_RDONLY)], []
        ours.append(given[0])
        for name, wanted in (("stdout", stdout), ("stderr", stderr)):
            if wanted == PIPE:
                read, write = os.pipe()
                setattr(self, name, os.fdopen(read, "r", encoding="utf-8", errors="replace"))
                ours.append(write)
            elif wanted == STDOUT:
                write = given[1]
            elif wanted == DEVNULL:
                write = os.open(os.devnull, os.O_WRONLY)
                ours.append(write)
            else:
                write = (
                    {"stdout": 1, "stderr": 2}[name]
                    if wanted is None
                    else wanted
                    if isinstance(wanted, int)
                    else wanted.fileno()
                )
            given.append(write)
        return given, ours

    def _listen(self) -> None:
        line = self._answers.readline()
        self._code = int(line) if line else -signal.SIGKILL
        self._answers.close()
        self._connection.close()
        self._ended.set()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._ended.is_set():
            self.returncode = self._code
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; negative: the signal that ended it."""
        if not self._ended.wait(timeout):
            raise TimeoutExpired(self.args, timeout or 0)
        self.returncode = self._code
        return self._code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(what it wrote to its output, to its errors), when it has ended."""
        texts = {"stdout": "", "stderr": ""}

        def read(name: str, stream: IO[str]) -> None:
            texts[name] = stream.read()
            stream.close()

        deadline = None if timeout is None else time.monotonic() + timeout
        streams = [(name, stream) for name in texts if (stream := getattr(self, name)) is not None and not stream.closed]
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in streams]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise TimeoutExpired(self.args, timeout or 0, texts["stdout"], texts["stderr"])
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return texts["stdout"], texts["stderr"]

    def send_signal(self, number: int) -> None:
        """Sends it a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Popen":
        return self

    def __exit__(self, *error: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def run(args: list[str], timeout: float = HANGS, **more: Any) -> CompletedProcess[str]:
    """Like subprocess.run with captured text; a command that takes too long is killed."""
    process = Popen(args, stdout=PIPE, stderr=PIPE, **more)
    try:
        out, err = process.communicate(timeout)
    except TimeoutExpired:
        process.kill()
        process.wait()
        raise
    return CompletedProcess(args, process.wait(), out, err)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ranks(args: list[str], size: int, env: dict[str, str] | None = None, **more: Any) -> list[Popen]:
    """The processes that a launcher on one machine would start, each with its place in its environment."""
    base = environment() if env is None else env
    meeting = {"WORLD_SIZE": str(size), "LOCAL_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**base, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [Popen(args, env=place, **more) for place in places]


def run_ranks(args: list[str], size: int, timeout: float = HANGS, **more: Any) -> CompletedProcess[str]:
    """A command on several ranks, as a launcher runs it: of ranks that end otherwise than with 0 the first one's code; the
    others are stopped two minutes after it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        processes = ranks(args, size, stdout=out, stderr=err, **more)
        deadline = time.monotonic() + timeout
        code = 0
        while left := [process for process in processes if process.poll() is None]:
            code = code or next((process.returncode for process in processes if process.returncode), 0)
            if code:
                deadline = min(deadline, time.monotonic() + 120)
            if time.monotonic() > deadline:
                for process in left:
                    process.kill()
                if not code:
                    raise TimeoutExpired(args, timeout)
            time.sleep(0.02)
        code = code or next((process.returncode for process in processes if process.returncode), 0)
        for stream in (out, err):
            stream.seek(0)
        return CompletedProcess(args, code, out.read(), err.read())
