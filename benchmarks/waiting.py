"""A train step of two threads beside other processes: python benchmarks/waiting.py.

The step is that of the laboratory's tower (32 px, batch 128) with MMCL, forward and backward, with GNU OpenMP's own way
of letting threads wait for each other and with the engine's (engine/__init__.py). Beside it run none, one or two processes
of Python that do nothing but count. Seconds by the clock of a step, the two settings in turn. Where nothing else runs the
target is to lose no more than a twentieth.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.side_by_side import write  # noqa: E402
from engine import SPINS  # noqa: E402

THREADS, SECONDS, ROUNDS = 2, 4.0, 3
TARGETS = {0: 0.95, 1: 1.0, 2: 1.0}  # by processes beside it


def step_seconds() -> float:
    """By the clock, of one step in this process."""
    import torch
    import torch.nn.functional as F

    from engine.models import clip

    torch.set_num_threads(THREADS)
    towers = clip.build("lab-resnet", 1)
    towers.train()
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(1, 400, (128, 20), generator=draw)
    tokens[:, 10], tokens[:, 11:] = 49_407, 0

    def step() -> None:
        left, right = towers(images, tokens)
        F.cross_entropy(14.3 * left @ right.T, torch.arange(128)).backward()

    step()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    return (time.perf_counter() - began) / steps


def played(setting: dict[str, str]) -> float:
    """What a process of its own measures under a setting, without those that it inherits."""
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in own} | setting
    done = subprocess.run([sys.executable, __file__, "one"], env=env, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def beside(processes: int) -> Iterator[None]:
    """So many processes that count."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def main() -> None:
    """Each number of processes beside the step."""
    import torch

    both = {"GOMP_SPINCOUNT": SPINS}, {"GOMP_SPINCOUNT": "300000"}  # the other is libgomp's own, where cores are enough
    for processes, target in TARGETS.items():
        with beside(processes):
            turns = [(played(both[0]), played(both[1])) for _ in range(ROUNDS)]
        write(
            f"waiting_beside_{processes}", "GNU OpenMP's own setting", f"torch {torch.__version__}", turns, target,
            "s a step", threads=THREADS, batch=128,
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["one"]:
        print(json.dumps(step_seconds()))
    else:
        main()
