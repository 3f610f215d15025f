"""The paper's question in miniature, with as many seeds as time allows: python benchmarks/gpu/miniature.py --seconds N.

specs/mini/main.yaml with CleanCLIP alone at three rates, its runs in parallel processes on the one GPU (sweep.jobs; they
take turns on it, as no MPS is started). Seeds come in blocks, each a larger sweep of the same study, which takes over what
is finished; no block is begun that would take longer than what is left. What is kept is the last whole
block's verdict, or what there is of the first.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.worlds import work
from benchmarks.side_by_side import keep

NAME = "mini-main"
RATES = [3e-4, 1e-3, 3e-3]
LAST = 25.0  # seconds to save, and for the report of what is there
TINY = (
    "data.pretrain.expect=192", "data.clean.pairs=64", "attack.poison.count=12", "model={name: test-vit}",
    "pretrain.epochs=1", "clean.epochs=1", "clean.batch=32", "pretrain.batch=32", "attack.twin=none",
    "attack.clean_twin=false",
)  # fmt: skip


def command(seeds: int, jobs: int, sizes: str) -> list[str]:
    """The study of that many seeds."""
    rates = RATES if sizes == "full" else RATES[:1]
    sweep = {
        "seed": list(range(seeds)), "pretrain.objective": [{"kind": "mmcl"}, {"kind": "mmcl_ssl"}],
        "cleaner": {"CleanCLIP": {"clean.objective": {"kind": "cleanclip"}}}, "clean.optimizer.rate": rates,
        "executor": "local" if jobs > 1 else "here", "jobs": jobs,
    }  # fmt: skip
    words = [f"sweep={json.dumps(sweep)}", "machine.threads=1", "machine.workers=0"]
    words += TINY if sizes == "tiny" else ()
    spec = ["--spec", str(ROOT / "specs/mini/main.yaml")]
    return [sys.executable, str(ROOT / "engine/run.py"), *spec, *(word for each in words for word in ("--set", each))]


def carry_out(words: list[str], seconds: float) -> bool:
    """Whether the study ended in that time; else its runs save, and what is done stays."""
    process = subprocess.Popen(words, cwd=work())
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        return False
    if code:
        raise SystemExit(f"the study ended with {code}")
    return True


def kept(seeds: int, jobs: int, seconds: float, whole: bool) -> None:
    """Keeps the verdict; `whole`: every run of these seeds has ended."""
    study = work() / "runs" / NAME
    runs, verdict = len(list(study.glob("*/finished.json"))), json.loads((study / "report/verdict.json").read_text())
    result = {"name": "gpu_miniature", "seeds": seeds, "at_once": jobs, "runs": runs, "whole": whole}
    keep({**result, "seconds": round(seconds, 1), "verdict": verdict})
    print(f"{seeds} seeds, {runs} runs after {seconds:.0f} s", flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument("--seconds", type=float, required=True)
    asked = parser.parse_args()
    began = time.monotonic()
    here = len(os.sched_getaffinity(0))
    jobs = max(1, min(14, here - 2)) if asked.sizes == "full" else 2
    block, seeds, took = (4 if asked.sizes == "full" else 1), 0, 0.0
    while asked.seconds - LAST - (time.monotonic() - began) > 1.2 * took:
        begun = time.monotonic()
        if not carry_out(command(seeds + block, jobs, asked.sizes), asked.seconds - LAST - (begun - began)):
            if not seeds:  # what is there of the first block
                subprocess.run([sys.executable, "-m", "report", f"runs/{NAME}"], cwd=work(), check=True)
                kept(block, jobs, time.monotonic() - began, whole=False)
                seeds = block
            break
        seeds, took = seeds + block, time.monotonic() - begun
        kept(seeds, jobs, time.monotonic() - began, whole=True)
        if asked.sizes == "tiny":
            break
    return int(seeds == 0)


if __name__ == "__main__":
    sys.exit(main())
