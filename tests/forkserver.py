"""Processes of ours without their imports: one server that has imported everything forks a child for each command.

    python tests/forkserver.py SOCKET       started by tests/forked.py, once a pytest process; ends with its standard input

A start of engine/run.py spends six CPU-seconds on imports, and the suite starts it some two hundred times. The server
runs nothing before it forks: no thread, no process group, no torch kernel. A child replaces its environment, folder,
arguments and standard streams, then runs the script as `__main__`, as a fresh interpreter would.
"""

import array
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS = ("configs", "data", "engine", "measures", "objectives", "records", "report")
DRAWN = {"ANTIDOTE_FIGURES": "drawn"}  # in a command's environment: its figures are drawn; those of -m report always are
FOREIGN = (
    "open_clip", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "torch.utils.tensorboard",
    "safetensors.torch", "jinja2", "rich.live", "rich.progress", "rich.panel", "optuna", "submitit", "scipy.stats",
    "PIL.PngImagePlugin", "coverage",
)  # fmt: skip


def preload() -> None:
    """Imports all that commands import; threads are none afterwards, since a fork would lose them."""
    from engine.training import zero

    zero.prepare()
    for name in FOREIGN:
        importlib.import_module(name)
    for package in OURS:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.endswith(
                ("__main__", "triton_blocks")
            ):  # the latter only where a core by Triton is asked for
                importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # a child's collections look at what it makes itself
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads before the fork"


def serve(path: str) -> None:
    """Answers requests on the socket until standard input ends; then nothing that it started is left."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    clients: dict[int, socket.socket] = {}  # by the child's pid
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, wake, 0], [], [])
        if wake in ready:
            with suppress(BlockingIOError):
                os.read(wake, 4096)
        if listener in ready:
            connection, _ = listener.accept()
            pid = start(connection, [listener, *clients.values()])
            clients[pid] = connection
        reap(clients)
        if 0 in ready and not os.read(0, 1):
            for pid in clients:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return


def reap(clients: dict[int, socket.socket]) -> None:
    """Tells each client how its child ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if (connection := clients.pop(pid, None)) is not None:
            with suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()


def start(connection: socket.socket, others: list[socket.socket]) -> int:
    """Reads a request, forks its child, answers with the pid."""
    streams = array.array("i")
    data, ancillary, *_ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * streams.itemsize))
    for _, _, content in ancillary:
        streams.frombytes(content)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    pid = os.fork()
    if not pid:
        become(json.loads(data), list(streams), [connection, *others])
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{pid}\n".encode())
    return pid


def become(request: dict[str, Any], streams: list[int], sockets: list[socket.socket]) -> None:
    """Runs the command in this process, which ends with it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for open_socket in sockets:
        open_socket.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    if request["words"][0] != "-m" and DRAWN.keys().isdisjoint(request["env"]):
        import report.write

        report.write.figures = lambda made: []  # to draw them takes longer than to train a tiny study
    coverage = begin_coverage()
    code = 1
    try:
        run(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            close_threads()
        if coverage is not None:
            coverage.stop()
            coverage.save()
        for stream_file in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream_file.flush()
        os._exit(code)


def run(words: list[str]) -> None:
    """What `python WORDS` does: a script, -m MODULE or -c CODE."""
    first, *rest = words
    if first == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})  # noqa: S102  (a test's own words)
    else:
        sys.argv, sys.path[0] = words, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def close_threads() -> None:
    """What an interpreter does at its end, before a process of its own ends by _exit: exit handlers."""
    import atexit
    import logging

    logging.shutdown()
    atexit._run_exitfuncs()


def begin_coverage() -> Any:
    """Measures this child like the pytest process that asked for it, if that is measured."""
    if "ANTIDOTE_COVERAGE" not in os.environ:
        return None
    from coverage import Coverage

    measured = Coverage(
        data_file=os.environ["ANTIDOTE_COVERAGE"], data_suffix=True, config_file=str(ROOT / "pyproject.toml")
    )
    measured.start()
    return measured


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    preload()
    serve(sys.argv[1])
