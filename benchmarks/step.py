"""Whole training steps: python benchmarks/step.py [step|cached|overhead], or --device cuda MODEL:PAIRS ....

`step`: ours (learner and DeepSpeed at the default stage) and open_clip's own train_one_epoch, on the same pictures and
captions of natural length. `cached`: gradient caching against --accum-freq. `overhead`: the engine against plain DDP around
300 small tensors. CPU seconds, in turn in one process.

On a device (auto: a GPU where there is one): ours and open_clip's in bf16, eager and compiled; benchmarks/gpu/steps.py.
"""

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.side_by_side import in_turn, write  # noqa: E402
from configs.machine import Machine  # noqa: E402
from configs.stage import Optimizer, Stage  # noqa: E402
from data.pipeline import Batch  # noqa: E402
from engine.distributed.world import World, destroy_distributed, init_distributed  # noqa: E402
from engine.models import clip  # noqa: E402
from engine.training import zero  # noqa: E402
from engine.training.head import Head  # noqa: E402
from engine.training.learner import Learner  # noqa: E402
from engine.training.optimizer import Schedule  # noqa: E402
from engine.training.step_inputs import MicroBatches  # noqa: E402
from objectives.mmcl import Mmcl  # noqa: E402

RATE = 1e-4


def pairs(name: str, rows: int) -> Batch:
    """Noise, and captions as long as CC3M's are (mean 11.8 tokens, 95th percentile 20, at most 28)."""
    draw, side = np.random.default_rng(0), clip.image_size(name)
    length = clip.model_config(name)["text_cfg"].get("context_length", 77)
    images = torch.from_numpy(draw.integers(0, 256, (rows, 1, 3, side, side), np.uint8))
    tokens = torch.zeros(rows, 1, length, dtype=torch.int32)
    for row, words in enumerate(np.clip(draw.gamma(6.0, 9.8 / 6.0, rows).round().astype(int), 3, min(26, length - 2))):
        tokens[row, 0, : words + 2] = torch.tensor([49406, *draw.integers(1000, 40000, words), 49407])
    return Batch(images, tokens, torch.arange(rows), [str(i) for i in range(rows)], torch.zeros(rows).bool(), [])


def ours(name: str, batch: Batch, micro: int | None, world: World) -> Any:
    """A function that takes one step and gives its CPU seconds."""
    rows = len(batch.keys)
    stage = Stage(objective=Mmcl(kind="mmcl"), epochs=1, batch=rows, optimizer=Optimizer(rate=RATE))
    tower_optimizer = zero.wrap(clip.build(name, 0), stage.optimizer, Machine(micro_batch=micro), world, rows)
    width = clip.model_config(name)["embed_dim"]
    head = Head.build(stage, width, {}, 0, world.device)
    schedule = Schedule(stage.optimizer, 10**6, 10**6)
    learner = Learner(tower_optimizer, head, stage, schedule, world, MicroBatches(micro))

    def step() -> float:
        began = time.process_time()
        outcome = learner.learn(batch, 1)
        assert bool(outcome.taken)
        return time.process_time() - began

    return step


def theirs(name: str, batch: Batch, accumulate: int) -> Any:
    """The same by open_clip's loop: its model, loss, optimizer and step, at its own settings in float32."""
    import open_clip
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    theirs = open_clip.create_model(name, precision="fp32", output_dict=True)
    named = list(theirs.named_parameters())
    plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    rest = [p for n, p in named if not (p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    towers = clip.build(name, 0)
    pixels = ((batch.images[:, 0].float() / 255 - towers.mean) / towers.std).chunk(accumulate)
    tokens = batch.tokens[:, 0].long().chunk(accumulate)

    class Loader(list):  # type: ignore[type-arg]
        num_batches, num_samples = accumulate, len(batch.keys)

    data = {"train": SimpleNamespace(dataloader=Loader(zip(pixels, tokens, strict=True)), set_epoch=lambda epoch: None)}
    settings = SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=accumulate, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, rank=0, local_rank=0, world_size=1, log_every_n_steps=10**6,
        batch_size=len(batch.keys) // accumulate, wandb=False, log_local=False, distributed=False, use_bnb_linear=None,
    )  # fmt: skip

    def step() -> float:
        began = time.process_time()
        train_one_epoch(theirs, data, ClipLoss(), 0, optimizer, None, None, None, settings)
        return time.process_time() - began

    return step


def overhead(world: World) -> None:
    """One step of 150 linear layers of width 16 on one row, in a loop of 20."""

    class Small(torch.nn.Sequential):
        norms: list[Any] = []

    def small() -> Small:
        torch.manual_seed(0)
        return Small(*(torch.nn.Linear(16, 16) for _ in range(150)))

    section, x = Optimizer(rate=RATE), torch.randn(4, 16)
    wrapped = zero.wrap(small(), section, Machine(), world, 4)  # type: ignore[arg-type]
    engine, backward = wrapped.engine, wrapped.backward
    plain = torch.nn.parallel.DistributedDataParallel(small())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, fused=True)

    def mine() -> float:
        began = time.process_time()
        for _ in range(20):
            backward(engine(x).square().sum())
            engine.step()
        return (time.process_time() - began) / 20 * 1e3

    def peers() -> float:
        began = time.process_time()
        for _ in range(20):
            plain(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return (time.process_time() - began) / 20 * 1e3

    turns = in_turn(mine, peers, 15)
    peer, release = "DistributedDataParallel and the same fused AdamW", f"torch {version('torch')}"
    write("engine_overhead", peer, release, turns, 0.909, "CPU ms a step", note="target: at most 1.1 times DDP's CPU time")


def on_device(asked: argparse.Namespace, world: World) -> None:
    """Each MODEL:PAIRS on the device."""
    from benchmarks.gpu import steps

    if asked.device != "auto" and asked.device != world.device.type:
        raise SystemExit(f"--device is {asked.device}, but this process is on {world.device.type}")
    until = time.monotonic() + 0.7 * asked.seconds
    for model in asked.which:
        name, _, rows = model.partition(":")
        if asked.ahead:
            steps.compile_ahead(name, int(rows), asked.objective, world)
        else:
            steps.compare(name, int(rows), asked.objective, world, until, asked.rounds, asked.product)


def main() -> None:
    """The asked benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=["step", "cached", "overhead"])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--objective", choices=("mmcl", "mmcl_ssl"), default="mmcl")
    parser.add_argument("--ahead", action="store_true", help="only compile, so that the compiler's files are there later")
    parser.add_argument("--seconds", type=float, default=600.0, help="nothing further is begun after 0.7 of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--product", type=int, default=8192, help="side of the measured product")
    asked = parser.parse_args()
    which = asked.which
    clip.add_models(Path(__file__).parent / "models")
    zero.prepare()
    world = init_distributed()
    if asked.device is not None:
        on_device(asked, world)
        destroy_distributed()
        return
    torch.set_num_threads(2)
    release = f"release {version('open_clip_torch')}"
    if "step" in which:
        for name, target, rounds in (("ViT-B-32", 1.45, 15), ("RN50", 1.30, 15)):
            batch = pairs(name, 16)
            turns = in_turn(ours(name, batch, None, world), theirs(name, batch, 1), rounds)
            write(f"step_{name}", "open_clip train_one_epoch", release, turns, target, "CPU s a step", pairs=16)
    if "cached" in which:
        batch = pairs("bench-vit", 2048)
        turns = in_turn(ours("bench-vit", batch, 256, world), theirs("bench-vit", batch, 8), 5)
        write(
            "cached_2048",
            "open_clip --accum-freq 8",
            release,
            turns,
            1.3,
            "CPU s a step",
            pairs=2048,
            micro_batch=256,
            model="bench-vit",
        )
    if "overhead" in which:
        overhead(world)
    destroy_distributed()


if __name__ == "__main__":
    main()
