"""Seconds from the command to the first step: python benchmarks/start.py.

Ours through `python engine/run.py`, with its first evaluation and its journal, against `python -m open_clip_train.main`
on one shard: the same ViT-B-32, 4 pairs a step (so that starting is most of it), no loader processes, float32.
open_clip's trainer needs an old webdataset and pandas, which are installed into a folder of their own. Wall seconds, in
turn, files in the page cache.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.side_by_side import in_turn, write
from data.synthetic import SyntheticWorld, write_world

OLD = ("webdataset==0.2.86", "pandas==2.3.3", "pytz")
SPEC = """\
name: start
data:
  pretrain: {{shards: "{0}/train/*.tar"}}
  test: {{tiny: {0}/eval}}
  augment: {{synonyms: none}}
attack: {{target: banana, poison: {{count: 4}}, captions: {0}/eval/zeroshot_classification_templates.txt}}
model: {{name: ViT-B-32}}
pretrain: {{objective: {{kind: mmcl}}, epochs: 1, batch: 4, optimizer: {{rate: 1.0e-4}}}}
measure: [{{kind: zero_shot, images: tiny}}]
machine: {{log_steps: 1, workers: 0}}
"""


def until(words: list[str], folder: Path, seen: str, file: str | None, **more: str) -> float:
    """Seconds until `seen` stands in what the command prints, or in a file that matches `file`; then it is killed."""
    began = time.monotonic()
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(words, cwd=folder, env={**os.environ, **more}, stdout=out, stderr=subprocess.STDOUT)
        try:
            while True:
                texts = [path.read_text() for path in (folder.glob(file) if file else [log])]
                if any(seen in text for text in texts):
                    return time.monotonic() - began
                if process.poll() is not None:
                    raise SystemExit(f"{words} ended before its first step:\n{log.read_text()[-3000:]}")
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Five rounds."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_world(here / "world", SyntheticWorld(pairs=64, tests=8, pixels=224, seed=0, pairs_per_shard=64))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", here / "old", *OLD], check=True
        )
        (here / "spec.yaml").write_text(SPEC.format(here / "world"))
        shard = next((here / "world/train").glob("*.tar"))

        def ours() -> float:
            run = Path(tempfile.mkdtemp(dir=here))
            words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(here / "spec.yaml")]
            return until(words, run, '"kind": "step"', "runs/start/*/metrics.jsonl")

        def theirs() -> float:
            run = Path(tempfile.mkdtemp(dir=here))
            words = [sys.executable, "-m", "open_clip_train.main", "--train-data", str(shard), "--train-num-samples", "64"]
            words += ["--dataset-type", "webdataset", "--model", "ViT-B-32", "--batch-size", "4", "--workers", "0"]
            words += ["--precision", "fp32", "--device", "cpu", "--epochs", "1", "--warmup", "1", "--log-every-n-steps", "1"]
            return until(words, run, "Train Epoch", None, PYTHONPATH=str(here / "old"))

        turns = in_turn(ours, theirs, 5)
    release = f"release {version('open_clip_torch')}, {OLD[0]}"
    note = "target: at most open_clip's time, though ours evaluates before its first step"
    write("time_to_first_step", "open_clip_train.main on one shard", release, turns, 1.0, "s", note=note)


if __name__ == "__main__":
    main()
