"""engine/run.py on a disk that is full when checkpoint N is written: python tests/full_disk.py N WORDS..."""

import errno
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from engine import run
from engine.training import named_state

write, left = named_state.save, int(sys.argv[1])


def save(engine: Any, folder: Path, tag: str) -> None:
    global left
    left -= 1
    if not left:
        raise OSError(errno.ENOSPC, "No space left on device")
    write(engine, folder, tag)


named_state.save = save
sys.exit(run.main(sys.argv[2:]))
