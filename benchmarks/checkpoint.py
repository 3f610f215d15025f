"""Saving and loading a checkpoint of RN50 with AdamW's moments: python benchmarks/checkpoint.py.

Ours beside DeepSpeed's save_checkpoint and load_checkpoint on the same engine, one process, ZeRO stage 0. What both
measure is writing until the files are handed to the system, and reading until the engine has them. Flushing and digesting,
which DeepSpeed does not do and we do before a checkpoint counts, is done to both sides' files by the same function, and
told beside: `commit_s`; likewise `verify_s`, reading the digests again before a load.
"""

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402

from benchmarks.side_by_side import Peak, write  # noqa: E402
from configs.machine import Machine  # noqa: E402
from configs.stage import Optimizer, Stage  # noqa: E402
from engine.distributed.world import destroy_distributed, init_distributed  # noqa: E402
from engine.models import clip  # noqa: E402
from engine.training import checkpoint, learner_state, named_state, zero  # noqa: E402
from engine.training.head import Head  # noqa: E402
from engine.training.learner import Learner  # noqa: E402
from engine.training.optimizer import Schedule  # noqa: E402
from objectives.mmcl import Mmcl  # noqa: E402

MODEL, ROUNDS, PAIRS = "RN50", 3, 16


def learner() -> Learner:
    """One of RN50 that has moments, as after a step."""
    world = init_distributed()
    section = Optimizer(rate=1e-4)
    stage = Stage(objective=Mmcl(kind="mmcl"), epochs=1, batch=PAIRS, optimizer=section)
    optimizer = zero.wrap(clip.build(MODEL, 1), section, Machine(precision="fp32"), world, PAIRS)
    shapes = {name: p.shape for name, p in optimizer.towers.clip.named_parameters()}
    moments = {f"{name}/{key}": torch.rand(shape) for name, shape in shapes.items() for key in ("exp_avg", "exp_avg_sq")}
    named_state.inherit(optimizer, {**moments, "steps": torch.tensor(1.0)}, world)
    head = Head.build(stage, clip.model_config(MODEL)["embed_dim"], {}, 1, world.device)
    return Learner(optimizer, head, stage, Schedule(section, 10, 5), world)


def timed(action: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds, seconds and the rise of memory of an action."""
    peak, began, cpu = Peak(), time.monotonic(), time.process_time()
    action()
    return {"cpu": time.process_time() - cpu, "s": time.monotonic() - began, "mb": peak.rise()}


def committed(folder: Path) -> dict[str, float]:
    """What flushing and digesting the files in a folder takes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor() as pool:
        return timed(lambda: list(pool.map(checkpoint.flushed_digest, files)))


def size(folder: Path) -> float:
    """MB in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def round_of(learner: Learner, folder: Path) -> dict[str, dict[str, float]]:
    """Each side's save, commit and load, in turn."""
    engine, world = learner.tower_optimizer.engine, learner.world
    ours, theirs = folder / "ours", folder / "theirs"
    ours.mkdir()

    def save() -> None:
        for name, content in learner_state.share(learner, world).items():
            checkpoint.write_file(ours / name, content)

    out = {"save": timed(save), "commit": committed(ours)}
    out["their_save"] = timed(lambda: engine.save_checkpoint(str(theirs), tag="1", save_latest=False))
    out["their_commit"] = committed(theirs)
    out["verify"] = timed(lambda: [checkpoint.digest(path) for path in ours.iterdir()])
    out["load"] = timed(lambda: learner_state.restore(learner, ours, world))
    out["their_load"] = timed(lambda: engine.load_checkpoint(str(theirs), tag="1"))
    out["bytes"] = {"ours": size(ours), "theirs": size(theirs)}
    for path in (ours, theirs):
        shutil.rmtree(path)
    return out


def main() -> None:
    """Times of saving and loading, and bytes."""
    warnings.simplefilter("ignore")  # of DeepSpeed's own use of deprecated names
    zero.prepare()
    of = learner()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [round_of(of, Path(folder)) for _ in range(ROUNDS + 1)][1:]

    def middle(part: str, unit: str) -> float:
        return round(median(one[part][unit] for one in rounds), 3)

    peer, release = "DeepSpeed's own", f"release {version('deepspeed')}"
    facts = {"model": MODEL, "processes": 1, "zero": 0}
    beside = {"save": {"commit": "commit", "their_commit": "their_commit"}, "load": {"verify": "verify"}}
    for part, others in beside.items():
        more = {f"{name}_s": middle(measured, "s") for measured, name in others.items()}
        for side, measured in (("ours", part), ("theirs", f"their_{part}")):
            more |= {f"{side}_s": middle(measured, "s"), f"{side}_peak_mb": middle(measured, "mb")}
        turns = [(one[part]["cpu"], one[f"their_{part}"]["cpu"]) for one in rounds]
        write(f"checkpoint_{part}", peer, release, turns, 1, "CPU s", **facts, **more)
    turns = [(one["bytes"]["ours"], one["bytes"]["theirs"]) for one in rounds]
    write("checkpoint_bytes", peer, release, turns, 1, "MB", **facts)
    destroy_distributed()


if __name__ == "__main__":
    main()
