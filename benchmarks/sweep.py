"""Seconds of a sweep of eight short cleanings: python benchmarks/sweep.py.

Ours: one command, whose process takes one run after another. The peer: ourselves with one command for each run, as the
launcher of arXiv 2311.14948 starts its runs; so the ratio is what starting once saves where runs are short. The third
number, `local`, is the same sweep by `sweep.executor: local`. Wall seconds, in turn, on a world of 192 pairs; the
pre-training is done before.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.side_by_side import in_turn, write
from data.synthetic import SyntheticWorld, write_world

RATES = [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5]
SPEC = """\
name: sweep
data:
  pretrain: {{shards: "{0}/train/*.tar"}}
  clean: {{pairs: 64}}
  test: {{tiny: {0}/eval}}
  augment: {{synonyms: none}}
attack: {{target: banana, poison: {{count: 12}}, captions: {0}/eval/zeroshot_classification_templates.txt}}
model: {{name: test-vit}}
pretrain: {{objective: {{kind: mmcl}}, epochs: 1, batch: 16, optimizer: {{rate: 1.0e-3}}}}
clean: {{objective: {{kind: cleanclip}}, epochs: 2, batch: 16, optimizer: {{rate: 1.0e-4}}}}
measure: [{{kind: zero_shot, images: tiny}}, {{kind: attack_success, images: tiny}}]
machine: {{workers: 0}}
"""


def seconds(here: Path, *commands: list[str]) -> float:
    """Of these commands, one after the other, on a study whose pre-training alone is done."""
    for path in (here / "runs/sweep").glob("clean-*"):
        shutil.rmtree(path)
    began = time.monotonic()
    for words in commands:
        subprocess.run(
            [sys.executable, str(ROOT / "engine/run.py"), "--spec", "sweep.yaml", *words], cwd=here, check=True,
            capture_output=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    assert len(list((here / "runs/sweep").glob("clean-*/finished.json"))) in (0, len(RATES))
    return time.monotonic() - began


def main() -> None:
    """Three rounds."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_world(here / "world", SyntheticWorld(pairs=192, tests=64, pixels=32, seed=1, pairs_per_shard=48))
        (here / "sweep.yaml").write_text(SPEC.format(here / "world"))
        seconds(here, ["--stage", "pretrain"])
        one = ["--set", f"sweep={{clean.optimizer.rate: {RATES}}}"]
        each = [["--set", f"clean.optimizer.rate={rate}"] for rate in RATES]
        turns = in_turn(lambda: seconds(here, one), lambda: seconds(here, *each), 3)
        local = seconds(here, [*one, "--set", "sweep.executor=local"])
        write("sweep_8_runs", "ourselves, one command a run", "this commit", turns, 1, "s", local=round(local, 2))


if __name__ == "__main__":
    main()
