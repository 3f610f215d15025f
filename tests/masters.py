"""What each of W ranks computes in one step in bf16, for tests/test_precision.py: python tests/masters.py OUT on each rank.

Under DeepSpeed at every ZeRO stage: the masters after one step of AdamW, fresh and with inherited moments and clipped, what
is exported before it, and the moments. And the gradients of the plain formula: torch's own, through weights that are rounded
to bf16 one by one. Rank 0 writes {case: {name: tensor}} to OUT.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imported, it changes nobody's path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(1, str(Path(__file__).resolve().parent))

import torch
from exactness import PAIRS, Plain, batch, build, make_learner, stage_of
from torch import nn

from configs.machine import Machine
from configs.stage import Optimizer, Stage
from engine.distributed.world import World, destroy_distributed, init_distributed
from engine.models import clip
from engine.models.towers import Towers
from engine.training import named_state, zero
from engine.training.init_weights import distance
from engine.training.learner import Learner
from engine.training.step_inputs import MicroBatches

MODELS = ("test-vit", "test-resnet")
# with so large an epsilon an update is no mere sign of the gradient
PLAIN = Optimizer(rate=0.01, decay=0.1, eps=0.01)
ZCLIP = PLAIN.model_copy(update={"spikes": "zclip"})
SEEN = (25.0, 2.0, 0.04)  # norms seen, their mean, their variance: the gradient's norm stands out
STEPS = 3


class Rounded(Plain):
    """The towers with each weight cast by itself, but for BatchNorm's and the tokens' embedding."""

    def __call__(self, *inputs: Any) -> Any:
        kept = {id(p) for m in self.module.modules() if isinstance(m, nn.BatchNorm2d | nn.Embedding) for p in m.parameters()}
        casts = {name: p if id(p) in kept else p.bfloat16() for name, p in self.module.named_parameters()}
        return torch.func.functional_call(self.module, casts, inputs)


def learner(name: str, section: Optimizer, machine: Machine, world: World) -> tuple[Learner, Towers]:
    stage = stage_of({"kind": "mmcl"}).model_copy(update={"optimizer": section})
    towers = grouped(name)
    return bare(zero.wrap(towers, section, machine, world, PAIRS // world.size), stage, world, name), towers


def grouped(name: str) -> Towers:
    towers = build(name, 1)
    for norm in towers.norms:
        norm.rows = PAIRS // 2  # few groups, as a CPU is slow at each
    return towers


def bare(wrapped: zero.TowerOptimizer, stage: Stage, world: World, name: str) -> Learner:
    """A learner without a frozen start, which mmcl does not look at."""
    of = make_learner(wrapped, stage, world, name, MicroBatches())
    of.start = None
    return of


def gradients(name: str, world: World) -> dict[str, torch.Tensor]:
    """Of the plain formula, and the loss."""
    towers = grouped(name).to(world.device)
    engine = Rounded(towers)
    plain = bare(zero.TowerOptimizer(engine, engine.optimizer, engine.backward), stage_of({"kind": "mmcl"}), world, name)
    loss = plain.learn(batch((1, 1), world), 0).terms["loss"]
    return {"loss": loss, **{key: p.grad for key, p in towers.clip.named_parameters() if p.grad is not None}}


def copies(of: Learner, world: World) -> dict[str, torch.Tensor]:
    """The masters, as a run exports them; on the first rank."""
    towers = of.tower_optimizer
    exported = named_state.weights(towers, named_state.on_first_rank(towers, world), world)
    masters = {name: exported[name].clone() for name, _ in towers.towers.clip.named_parameters() if name in exported}
    assert {value.dtype for value in masters.values()} <= {torch.float32}
    return masters


def first_update(name: str, machine: Machine, world: World) -> dict[str, torch.Tensor]:
    """The masters after a step, how far they were from the start before it, and the moments."""
    before = {key: p.detach().clone() for key, p in build(name, 1).clip.named_parameters()}
    of, _ = learner(name, PLAIN, machine, world)
    exported = copies(of, world)
    moved = torch.tensor(distance(exported, before) if world.first else 0.0)
    loss = of.learn(batch((1, 1), world), 0).terms["loss"]
    after = copies(of, world)
    out = {"loss": loss, "distance": moved, **after, **named_state.inheritable(of.tower_optimizer, world)}
    of.tower_optimizer.engine.destroy()
    return out


def inherited_and_clipped(name: str, machine: Machine, world: World) -> dict[str, torch.Tensor]:
    """The masters after a step with moments from before and a gradient whose norm stands out."""
    of, _ = learner(name, ZCLIP, machine, world)
    named_state.inherit(of.tower_optimizer, {**moments(name), "steps": torch.tensor(float(STEPS))}, world)
    assert of.tower_optimizer.zclip is not None
    of.tower_optimizer.zclip.state.copy_(torch.tensor(SEEN))
    of.learn(batch((1, 1), world), 0)
    out = {"zclip": of.tower_optimizer.zclip.state.clone(), **copies(of, world)}
    of.tower_optimizer.engine.destroy()
    return out


def moments(name: str) -> dict[str, torch.Tensor]:
    """Some of an earlier training, by their names in a file."""
    draw, out = torch.Generator().manual_seed(6), {}
    for key, p in clip.build(name, 1).clip.named_parameters():
        out[f"{key}/exp_avg"] = 1e-3 * torch.randn(p.shape, generator=draw)
        out[f"{key}/exp_avg_sq"] = 1e-6 * torch.rand(p.shape, generator=draw)
    return out


def main(out: str) -> None:
    world = init_distributed()
    zero.prepare()
    results: dict[str, Any] = {f"gradients {name}": gradients(name, world) for name in MODELS}
    for stage in (0, 1, 2, 3):
        machine = Machine(zero=stage, precision="bf16")  # type: ignore[arg-type]
        for name in MODELS:
            results[f"first {name} {stage}"] = first_update(name, machine, world)
        results[f"clipped test-vit {stage}"] = inherited_and_clipped("test-vit", machine, world)
    if world.first:
        torch.save(results, out)
    destroy_distributed()


if __name__ == "__main__":
    main(sys.argv[1])
