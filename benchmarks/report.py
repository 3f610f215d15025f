"""Seconds and memory of a large study's report, from its journals alone: python benchmarks/report.py.

1,000 runs of 20 epochs: of each epoch three measures (of which two are of one set) and of each run 300 steps. There is no
peer: the ratio is the budget of 20 s over our time, the target 1. Time is of the process's CPU from its start, imports
included; `wall_s` is the median wall time, which other work on the machine disturbs; `peak_mb` is the largest resident set,
budget 1,024 MiB.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.side_by_side import child, write

BUDGET = 20.0  # seconds
RUNS, EPOCHS, STEPS, SEEDS = 1_000, 20, 300, 10
WAYS = ("mmcl", "mmcl_ssl")


def make(folder: Path) -> None:
    """Writes the study: a pre-training for each way and seed, the rest cleanings of them at several rates."""
    runs = []
    for way in WAYS:
        for seed in range(SEEDS):
            runs.append({"run": f"pretrain-{way}-{seed}", "stage": "pretrain", "pretrain_objective": way, "seed": seed})
    for number in range(RUNS - len(runs)):
        way, seed = WAYS[number % 2], number // 2 % SEEDS
        facts = {
            "pretrain_objective": way,
            "clean_objective": ("cleanclip", "par")[number // 20 % 2],
            "seed": seed,
            "rate": 10 ** -(3 + number % 50 / 10),
            "swept": {"clean.objective.weight": 2 ** (number // 40 % 4)},
            "cleaning": ["clean.objective.weight"],
        }
        runs.append({"run": f"clean-{number:04d}", "stage": "clean", "start": f"pretrain-{way}-{seed}", **facts})
    for at, run in enumerate(runs):
        here = folder / str(run["run"])
        here.mkdir(parents=True)
        (here / "metrics.jsonl").write_text("\n".join(journal(at, run["stage"] == "clean")) + "\n")
        (here / "finished.json").write_text("{}")
        (here / "card.json").write_text(
            json.dumps({"run": run["run"], "versions": {"torch": "2"}, "hardware": {"cores": 2}})
        )
    (folder / "study.json").write_text(json.dumps({"name": "large", "runs": runs}))


def journal(at: int, clean: bool) -> list[str]:
    """The lines of one run's journal, as the engine writes them."""
    lines, every = [], STEPS // EPOCHS
    for epoch in range(EPOCHS + 1):
        for step in range((epoch - 1) * every, epoch * every) if epoch else ():
            terms = {"loss": 1 / (step + 1), "mmcl": 0.5, "ssl": 0.5, "scale": 14.3, "pairs_per_s": 900.0, "seconds": 0.07}
            lines.append(json.dumps({"kind": "step", "epoch": epoch, "step": step, **terms, "rate": 1e-4}))
        left = max(0.0, 1 - epoch / (1 + at % 29)) if clean else 1.0
        where = {"kind": "measure", "epoch": epoch, "step": epoch * every}
        lines.append(json.dumps({**where, "images": "imagenet", "top1": 0.24 - at % 17 * epoch / 2_000, "pictures": 50_000}))
        cosines = {"similarity_clean": 0.3 + epoch / 50, "similarity_poisoned": 0.2 + left / 4}
        lines.append(json.dumps({**where, "images": "imagenet", "asr": left, "others": 49_950, **cosines}))
        lines.append(json.dumps({**where, "images": "held_out", "val_loss": 1 + left, "distance": epoch / 10}))
    return lines


def main() -> None:
    """Three rounds, each in a fresh process."""
    if sys.argv[1:]:
        from report.write import write_report

        began = time.monotonic()
        write_report(Path(sys.argv[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"cpu": time.process_time(), "wall": time.monotonic() - began, "peak_mb": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "large")
        rounds = [child("report.py", str(Path(folder) / "large")) for _ in range(3)]
    turns = [(float(turn["cpu"]), BUDGET) for turn in rounds]
    peak = round(max(turn["peak_mb"] for turn in rounds))
    wall = round(median(turn["wall"] for turn in rounds), 1)
    write("report_1000", "the budget", "20 s", turns, 1, "s", wall_s=wall, peak_mb=peak, runs=RUNS, epochs=EPOCHS)


if __name__ == "__main__":
    main()
