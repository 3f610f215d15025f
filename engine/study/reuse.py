"""Runs that another study has finished: the same fingerprint is the same result, so they are taken over, not done again.

Looked for in the folders beside the study's own. Weights are linked where the file system can, since nothing writes into
them; all other files are copied, since a run may be measured again.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from configs.plan import Run
from records.folder import finished, read_json

KEPT = (
    "spec.json",
    "card.json",
    "metrics.jsonl",
    "poison.json",
    "poison.png",
    "answers.png",
    "skipped.jsonl",
    "bad_batches.jsonl",
)
WEIGHTS = ("weights.safetensors", "optimizer.safetensors")


def reuse_finished_runs(runs: Iterable[Run], folder: Path) -> list[tuple[Run, Path]]:
    """Takes over into the study's folder what others have finished, each run whole or not at all; (run, from where)."""
    out = []
    for run in runs:
        here = folder / run.folder
        if here.exists():
            continue
        for there in sorted(folder.parent.glob(f"*/{run.folder}")):
            if finished(there) and read_json(there / "spec.json") == run.decides:
                _take(there, here)
                out.append((run, there))
                break
    return out


def _take(there: Path, here: Path) -> None:
    fresh = here.with_name(f".{here.name}.adopted-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in WEIGHTS:
        if (there / name).is_file():
            try:
                os.link(there / name, fresh / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(there / name, fresh / name)
    for name in (*KEPT, "finished.json"):
        if (there / name).is_file():
            shutil.copyfile(there / name, fresh / name)
    try:
        fresh.rename(here)
    except OSError:  # another launch took it over, or began it
        shutil.rmtree(fresh)
