"""engine/run.py with a fault in a phase: python tests/faults.py PHASE FAULT RANKS NUMBER WORDS...

The fault comes at the NUMBER-th call (from 1) of the phase's function, on these ranks ("0", "1", "01"): TERM, STOP or KILL,
the signal of that name to this process; full, an OSError as of a full disk; defect, an error of ours; worker-KILL and
worker-STOP, the signal to one of its loader workers; outage, a disk that no longer answers, and TERM to the run meanwhile.
"""

import errno
import importlib
import os
import signal
import sys
from multiprocessing import active_children, parent_process
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from engine import run

PHASES = {
    "index": "data.shards:read_table",
    "reading": "data.pipeline:Pairs._bodies",
    "build": "engine.models.clip:build",
    "first evaluation": "engine.evaluation.encode:Encoder.texts",
    "training": "engine.training.learner:Learner.learn",
    "saving": "engine.training.checkpoint:write_file",
    "commit": "engine.training.checkpoint:_commit",
    "evaluation": "engine.evaluation.encode:Encoder.texts",
    "journal": "engine.training.journal:Journal.row",
    "weights": "engine.training.outputs:_write_weights",
    "report": "report.write:write_report",
}


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def fault(kind: str) -> None:
    if kind == "full":
        fail(errno.ENOSPC)
    if kind == "defect":
        raise KeyError("a defect")
    if kind == "outage":
        from data.patience import with_retries

        os.kill(os.getppid() if parent_process() else os.getpid(), signal.SIGTERM)
        with_retries("/shards/0.tar", lambda: fail(errno.EIO))
    name = kind.removeprefix("worker-")
    pid = os.getpid() if name == kind else active_children()[0].pid
    os.kill(pid or 0, getattr(signal, f"SIG{name}"))


def main(phase: str, kind: str, ranks: str, number: str, *words: str) -> int:
    module, _, path = PHASES[phase].partition(":")
    place: Any = importlib.import_module(module)
    *owners, name = path.split(".")
    for owner in owners:
        place = getattr(place, owner)
    function, left = getattr(place, name), int(number)

    def faulty(*args: Any, **more: Any) -> Any:
        nonlocal left
        left -= os.environ.get("RANK", "0") in ranks
        if not left:
            left -= 1
            fault(kind)
        return function(*args, **more)

    setattr(place, name, faulty)
    return run.main(list(words))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
