"""Shards of drawn pictures under ANTIDOTE_WORK/shards: python benchmarks/gpu/worlds.py NAME --pairs N ...

All cores but two draw, as the bytes are the same for any number.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from data import synthetic


def work() -> Path:
    """The folder of what parts make for each other."""
    return Path(os.environ["ANTIDOTE_WORK"])


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    (work() / "shards").mkdir(parents=True, exist_ok=True)
    workers = max(1, len(os.sched_getaffinity(0)) - 2)
    sys.exit(synthetic.main([str(work() / "shards" / name), "--workers", str(workers), *words]))
