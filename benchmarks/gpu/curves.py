"""Losses in bf16 at each ZeRO stage beside a CPU's in fp32: python benchmarks/gpu/curves.py [--sizes tiny] [--write].

200 steps of the demo's pre-training; what is compared is the mean of each 20 steps, to 2 %. The CPU's are carried along in
curves.json, which --write makes anew on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.worlds import work
from benchmarks.side_by_side import keep

KEPT = Path(__file__).with_suffix(".json")
TOLERANCE = 0.02
SIZES = {"full": ("demo-resnet", 60, 2, 20), "tiny": ("test-vit", 24, 1, 4)}  # model, batch, epochs, steps of a mean
SPEC = """\
name: {name}
seed: 0
data:
  pretrain: {{shards: "shards/demo/train/*.tar"}}
  test: {{demo: shards/demo/eval}}
  augment: {{synonyms: none}}
attack: {{target: banana, poison: {{count: 8}}, captions: shards/demo/eval/zeroshot_classification_templates.txt}}
model: {{name: {model}, norm_group: {group}}}
pretrain:
  objective: {{kind: mmcl}}
  epochs: {epochs}
  batch: {batch}
  optimizer: {{rate: 1.0e-3, warmup: 50, decay: 0.1, betas: [0.9, 0.98]}}
measure: [{{kind: zero_shot, images: demo}}]
machine: {{log_steps: 1, save_minutes: 99, workers: {workers}, precision: {precision}, zero: {zero}, threads: {threads}}}
"""


def start(sizes: str, precision: str, zero: int, folder: Path) -> subprocess.Popen[bytes]:
    """A run of the demo's pre-training in that folder."""
    model, batch, epochs, _ = SIZES[sizes]
    several = len(os.sched_getaffinity(0)) >= 8
    spec = SPEC.format(
        name="curve", model=model, group=batch // 2, epochs=epochs, batch=batch, precision=precision, zero=zero,
        workers=2 if several else 0, threads=2 if several else 1,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "shards").symlink_to(work() / "shards")
    (folder / "curve.yaml").write_text(spec)
    words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", "curve.yaml", "--stage", "pretrain"]
    return subprocess.Popen(words, cwd=folder)


def losses(folder: Path) -> list[float]:
    """Of each step."""
    (path,) = folder.glob("runs/curve/*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]


def means(values: list[float], width: int) -> list[float]:
    """Of each `width` in turn."""
    return [sum(values[i : i + width]) / width for i in range(0, len(values) - width + 1, width)]


def make(sizes: str, folder: Path) -> None:
    """Puts the CPU's losses into curves.json."""
    assert start(sizes, "fp32", 0, folder).wait() == 0
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.write_text(json.dumps(known | {sizes: [round(loss, 5) for loss in losses(folder)]}) + "\n")


def compare(sizes: str, folder: Path) -> int:
    """The exit code: 1 if a stage's losses are further from the CPU's."""
    wanted, width = json.loads(KEPT.read_text())[sizes], SIZES[sizes][3]
    at_once = 4 if len(os.sched_getaffinity(0)) >= 8 else 2
    stages, far = [0, 1, 2, 3], dict[str, float]()
    for begin in range(0, 4, at_once):
        part = stages[begin : begin + at_once]
        runs = {zero: start(sizes, "bf16", zero, folder / str(zero)) for zero in part}
        for zero, process in runs.items():
            assert process.wait() == 0, f"the run at stage {zero} failed"
    curves = {zero: means(losses(folder / str(zero)), width) for zero in stages}
    expected = means(wanted, width)
    for zero, curve in curves.items():
        assert len(curve) == len(expected), (zero, len(curve), len(expected))
        far[str(zero)] = round(max(abs(a - b) / b for a, b in zip(curve, expected, strict=True)), 5)
    _use_gpu()
    result = {"name": "gpu_curves", "peer": "a CPU in fp32, carried along", "steps": len(wanted), "tolerance": TOLERANCE}
    keep({**result, "largest_difference": far, "means": curves, "cpu": expected})
    print(f"largest relative difference of {width} steps' mean loss, by ZeRO stage: {far}")
    return int(max(far.values()) > TOLERANCE)


def _use_gpu() -> None:
    """So that the result names it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.init()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", choices=tuple(SIZES), default="full")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=work()) as folder:
        if asked.write:
            make(asked.sizes, Path(folder) / "cpu")
            return 0
        return compare(asked.sizes, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
