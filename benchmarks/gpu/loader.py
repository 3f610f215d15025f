"""The loader alone and with a model: python benchmarks/gpu/loader.py [--sizes tiny].

JPEG of 336 x 336 (26 kB), pages in memory. Alone: our pairs through loader processes, one view and two, against what RN50's
step on this device needs a pair, so that the ratio is how many such devices the loader feeds. End to end: RN50's run by
engine/run.py, with its journal, against the same steps without a loader.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import torch

from benchmarks.gpu import steps
from benchmarks.gpu.worlds import work
from benchmarks.side_by_side import write
from configs.machine import Machine
from data.augmentation.augment import Augment
from data.loader import Workers
from data.pipeline import Pairs, Reading, batches
from data.shards import read_index
from data.sources import Data, Source
from engine.distributed.world import cores, destroy_distributed, init_distributed
from engine.models import clip
from engine.models.tokenizer import Tokenizer
from engine.training import zero

SIZES = {"full": ("RN50", 256, 30), "tiny": ("test-vit", 8, 3)}  # model, pairs, steps that are timed
FIRST = 3  # batches, or rows of a journal, that do not count
SPEC = """\
name: loader
data:
  pretrain: {{shards: "{world}/train/*.tar"}}
  test: {{pictures: {world}/eval}}
  augment: {{synonyms: none}}
attack: {{target: banana, poison: {{count: 4}}, captions: {world}/eval/zeroshot_classification_templates.txt}}
model: {{name: {model}}}
pretrain: {{objective: {{kind: mmcl}}, epochs: {epochs}, batch: {rows}, optimizer: {{rate: 1.0e-4}}}}
measure: [{{kind: zero_shot, images: pictures}}]
machine: {{log_steps: {log}, save_minutes: 99, precision: bf16}}
"""


def alone(world: Path, model: str, rows: int, views: int, workers: int) -> list[float]:
    """Milliseconds a pair of our loader, of each fifth of the epochs."""
    index, section = read_index(f"{world}/train/*.tar", world / "cache"), Augment(synonyms="none")
    reading = Reading(0, 0, 1, rows, (views, views), clip.image_size(model), section, "txt", "exact")
    data = Data(pretrain=Source(shards="x"), test={}, augment=section)
    pairs = Pairs(index, None, data, reading, Tokenizer(model), None)
    marks = []
    for number, _ in enumerate(batches(pairs, 3, 0, Workers(workers))):
        if number >= FIRST - 1:
            marks.append(time.perf_counter())
    fifth = max(1, (len(marks) - 1) // 5)
    ends = marks[::fifth]
    return [1e3 * (b - a) / (fifth * rows) for a, b in zip(ends, ends[1:], strict=False)]


def compute(model: str, rows: int, count: int, world: Any) -> list[float]:
    """Milliseconds a pair of eager steps without a loader."""
    batch = steps.pairs(model, rows, 1, world.device)
    of = steps.learner(model, batch, "mmcl", Machine(precision="bf16"), world)

    def work() -> None:
        for step in range(max(1, count // 5)):
            of.learn(batch, step)

    work()
    return [steps.clock(work, world.device) / (max(1, count // 5) * rows) for _ in range(5)]


def end_to_end(folder: Path, world: Path, model: str, rows: int, count: int) -> list[float]:
    """Milliseconds a pair of each row of a run's journal but the first ones."""
    folder.mkdir()
    index = read_index(f"{world}/train/*.tar", world / "cache")
    epochs = max(1, -(-(count + 10) * rows // len(index)))
    log = max(1, count // 10)
    (folder / "loader.yaml").write_text(SPEC.format(world=world, model=model, rows=rows, epochs=epochs, log=log))
    words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", "loader.yaml", "--stage", "pretrain"]
    subprocess.run(words, cwd=folder, check=True)
    (path,) = folder.glob("runs/loader/*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    paces = [row["pairs_per_s"] for row in lines if row["kind"] == "step"]
    return [1e3 / pace for pace in (paces[FIRST:] or paces)]


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", choices=tuple(SIZES), default="full")
    model, rows, count = SIZES[parser.parse_args().sizes]
    place = work() / "shards/pictures"
    workers = max(1, cores() - 2) if torch.cuda.is_available() else 1
    own = {views: alone(place, model, rows, views, workers) for views in (1, 2)}
    whole = end_to_end(work() / "loader", place, model, rows, count)
    zero.prepare()
    world = init_distributed()
    needs = compute(model, rows, count, world)
    destroy_distributed()
    prefix = "gpu" if world.device.type == "cuda" else "cpu"
    peer, facts = f"{model}'s step on this device, {rows} pairs", {"workers": workers, "cores": len(os.sched_getaffinity(0))}
    need = median(needs)
    for views, name in ((1, "loader"), (2, "loader_two_views")):
        write(f"{prefix}_{name}", peer, "this commit", [(ms, need) for ms in own[views]], 1, "ms a pair", **facts)
    write(f"{prefix}_end_to_end", peer, "this commit", [(ms, need) for ms in whole], 1, "ms a pair", **facts)


if __name__ == "__main__":
    main()
