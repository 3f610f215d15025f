"""engine/run.py on a disk that is full when checkpoint N is written: python tests/full_disk.py N WORDS..."""

import errno
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from engine import run
from engine.training import checkpoint

write, left = checkpoint.write_file, int(sys.argv[1])


def write_file(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    global left
    left -= path.name.startswith("weights")
    if not left:
        raise OSError(errno.ENOSPC, "No space left on device")
    write(path, tensors)


checkpoint.write_file = write_file
sys.exit(run.main(sys.argv[2:]))
