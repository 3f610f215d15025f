"""What each of W ranks computes in one step, for tests/test_exactness.py: torchrun --nproc-per-node W tests/exactness.py
OUT.

The same 48 pairs, whatever W: in float64 with plain gradients averaged over ranks, and in float32 under DeepSpeed, where
one step of gradient descent at rate 1 shows the gradient. Rank 0 writes {case: {name: tensor}} to OUT.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imported, it changes nobody's path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from pydantic import TypeAdapter

from configs.machine import Machine
from configs.stage import Optimizer, Stage
from data.pipeline import Batch
from engine.distributed import collectives
from engine.distributed.world import World, destroy_distributed, init_distributed
from engine.models import clip
from engine.models.towers import Towers
from engine.training import named_state, optimizer, zero
from engine.training.head import Head
from engine.training.learner import Learner
from engine.training.norm_groups import NormGroups, set_norm_groups
from engine.training.optimizer import Schedule
from engine.training.step_inputs import Annotations, MicroBatches
from objectives import AnyObjective

PAIRS, GROUP, MICRO = 48, 4, 8
EPOCH_STEPS = 5
LARGE_GROUPS = (24, 48)  # the shares of one to four ranks, and larger than a micro-batch
CLEANCLIP = {"kind": "cleanclip"}
OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "mmcl"},
    {"kind": "ssl", "direction": "symmetric", "temperature": "own", "pictures": 0.5, "poisoned": "left_out"},
    {"kind": "cleanclip"},
    {"kind": "siglip"},
    {"kind": "slip", "hidden": 8, "out": 4},
    {"kind": "cyclip"},
    {"kind": "deep_cluster", "classes": 3, "within": 0.0},
    {"kind": "par", "learn_scale": True},
    {"kind": "roclip", "every": 1, "pool": 30},
    {"kind": "unlearn", "flags": "x"},
    {"kind": "safeclip", "unimodal": 0, "pool": 30},
    {"kind": "inverted", "stamp": "x", "within": 0.5},
    {"kind": "supervised", "classes": 3},
    {"kind": "sum", "parts": [{"objective": {"kind": "cyclip"}}, {"weight": 0.5, "objective": {"kind": "siglip"}}]},
]


class Plain:
    """What the learner asks of DeepSpeed's engine, without it: gradients averaged over ranks, no step."""

    def __init__(self, towers: Towers) -> None:
        self.module, self.optimizer = towers, torch.optim.SGD(towers.parameters(), lr=0.0)

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        collectives.all_reduce_mean_([p.grad for p in self.module.parameters() if p.grad is not None])

    def step(self) -> None:
        pass


def batch(views: tuple[int, int], world: World) -> Batch:
    """This rank's part of the 48 pairs."""
    draw = np.random.default_rng(5)
    images = torch.from_numpy(draw.integers(0, 256, (PAIRS, 3, 3, 32, 32), np.uint8))
    tokens = torch.zeros(PAIRS, 2, 16, dtype=torch.int32)
    for row in range(PAIRS):
        for view in range(2):
            length = int(draw.integers(1, 12))
            tokens[row, view, : length + 2] = torch.tensor([49406, *draw.integers(1, 40000, length), 49407])
    share = PAIRS // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    keys = [str(i) for i in range(PAIRS)][mine]
    samples = torch.arange(PAIRS)[mine]
    return Batch(images[mine, : views[0]], tokens[mine, : views[1]], samples, keys, samples % 7 == 0, [])


def make_learner(
    tower_optimizer: zero.TowerOptimizer, stage: Stage, world: World, name: str, micro_batches: MicroBatches
) -> Learner:
    """A learner with everything that any objective asks for."""
    towers = clip.build(name, 7).eval()
    width = clip.model_config(name)["embed_dim"]
    head = torch.randn(3, width, generator=torch.Generator().manual_seed(4))  # a fresh one gives gradients of 1e-4
    kept = {"scale": torch.tensor([2.0]), "supervised.weight": head}
    return Learner(
        tower_optimizer, Head.build(stage, width, kept, 3, world.device), stage,
        Schedule(stage.optimizer, 10, EPOCH_STEPS), world,
        micro_batches, Annotations(np.arange(PAIRS) % 4 - 1, np.arange(PAIRS) % 5 == 0, True), towers,
    )  # fmt: skip


def build(name: str, views: int) -> Towers:
    """In BatchNorm groups of GROUP pairs, which every process holds whole."""
    towers = clip.build(name, 1).train()
    for norm in towers.norms:
        norm.rows = GROUP * views
    return towers


def build_in_groups(name: str, stage: Stage, world: World, group: int, micro: int | None) -> Towers:
    """In groups of any size, as a run sets them."""
    towers = clip.build(name, 1).train()
    if not stage.objective.moves_texts:
        towers.freeze_texts()
    share = PAIRS // world.size
    groups = NormGroups(group, max(1, group // share), micro is not None and micro < min(group, share))
    set_norm_groups(towers, groups, stage)
    return towers


def statistics(towers: Towers) -> dict[str, torch.Tensor]:
    collectives.all_reduce_mean_([part for norm in towers.norms for part in (norm.running_mean, norm.running_var)])
    return {f"running {i}": torch.cat([n.running_mean, n.running_var]) for i, n in enumerate(towers.norms)}


def stage_of(fields: dict[str, Any], gather: str = "exact") -> Stage:
    objective = TypeAdapter(AnyObjective).validate_python(fields)
    epochs, optimizer = max(1, objective.least_epochs), Optimizer(rate=1.0, decay=0.0)
    return Stage(objective=objective, epochs=epochs, batch=PAIRS, optimizer=optimizer, gather=gather)  # type: ignore[arg-type]


def step_of(stage: Stage) -> int:
    """The first of the last epoch: after what an objective does to warm up."""
    return EPOCH_STEPS * (stage.epochs - 1)


def plain(
    fields: dict[str, Any], name: str, micro: int | None, world: World, gather: str = "exact", group: int = GROUP
) -> dict[str, Any]:
    """Loss and every gradient in float64."""
    stage = stage_of(fields, gather)
    towers = build_in_groups(name, stage, world, group, micro).double()
    if towers.whole_pictures:
        towers.recompute_resnet()
    engine = Plain(towers)
    tower_optimizer = zero.TowerOptimizer(engine, engine.optimizer, engine.backward)
    learner = make_learner(tower_optimizer, stage, world, name, MicroBatches(micro))
    learner.head.parameters = {
        key: value.detach().double().requires_grad_() for key, value in learner.head.parameters.items()
    }
    learner.memory = {key: value.double() if value.is_floating_point() else value for key, value in learner.memory.items()}
    learner.start = learner.start.double() if learner.start is not None else None
    learner.head.optimizer = torch.optim.SGD(learner.head.parameters.values(), lr=0.0)
    outcome = learner.learn(batch(stage.objective.views, world), step_of(stage))
    grads = {key: value.grad for key, value in learner.head.parameters.items()}
    grads |= {key: value.grad for key, value in towers.named_parameters() if value.grad is not None}
    return {"loss": outcome.terms["loss"].double(), **grads, **statistics(towers)}


def deepspeed(
    name: str, stage_number: int, micro: int | None, world: World, fields: dict[str, Any] = CLEANCLIP, group: int = GROUP,
    recompute: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Loss, and every parameter after one step of gradient descent at rate 1, under DeepSpeed."""
    stage = stage_of(fields)
    towers = build_in_groups(name, stage, world, group, micro)
    machine = Machine(zero=stage_number, precision="fp32", recompute=recompute)  # type: ignore[arg-type]
    tower_optimizer = zero.wrap(towers, stage.optimizer, machine, world, PAIRS // world.size)
    # as engine/training/build.py: stage 3 needs equal calls on all ranks, which captions by length are not
    micro_batches = MicroBatches(micro, by_length=stage_number < 3)
    learner = make_learner(tower_optimizer, stage, world, name, micro_batches)
    outcome = learner.learn(batch(stage.objective.views, world), step_of(stage))
    whole = named_state.weights(tower_optimizer, named_state.on_first_rank(tower_optimizer, world), world)
    out = {f"clip.{key}": whole[key].clone() for key, _ in towers.clip.named_parameters() if key in whole}
    out |= {key: value.detach().clone() for key, value in learner.head.parameters.items()} | statistics(towers)
    tower_optimizer.engine.destroy()
    return {"loss": outcome.terms["loss"], **out}


def main(out: str) -> None:
    world = init_distributed()
    zero.prepare()
    results: dict[str, Any] = {}
    for fields in OBJECTIVES:
        for name in ("test-vit", "test-resnet"):
            for micro in (None, MICRO) if world.size == 1 or fields["kind"] == "cleanclip" else (MICRO,):
                results[f"float64 {fields['kind']} {name} micro {micro}"] = plain(fields, name, micro, world)
    for group in (size for size in LARGE_GROUPS if not max(size, PAIRS // world.size) % min(size, PAIRS // world.size)):
        for micro in (None, MICRO):
            results[f"groups of {group} micro {micro}"] = plain(CLEANCLIP, "test-resnet", micro, world, group=group)
    results["published"] = plain({"kind": "mmcl"}, "test-vit", None, world, gather="published")
    step = optimizer.adamw
    optimizer.adamw = lambda kind, groups, section, device: (torch.optim.SGD(groups, lr=1.0), "descent")  # type: ignore[assignment]
    for stage in (0, 1, 2, 3):
        for name in ("test-vit", "test-resnet"):
            for micro in (None, MICRO):
                case = f"zero {stage} cleanclip {name} micro {micro}"
                results[case] = deepspeed(name, stage, micro, world)
        results[f"zero {stage} cleanclip test-resnet recompute"] = deepspeed(
            "test-resnet", stage, MICRO, world, recompute=True
        )
        for micro in (None, MICRO) if world.size > 2 or stage in (0, 3) else (MICRO,):
            results[f"zero {stage} groups of {PAIRS} micro {micro}"] = deepspeed(
                "test-resnet", stage, micro, world, {"kind": "mmcl"}, group=PAIRS
            )
    for fields in OBJECTIVES:
        results[f"zero 1 {fields['kind']} test-vit"] = deepspeed("test-vit", 1, None, world, fields)
    optimizer.adamw = step
    if world.first:
        torch.save(results, out)
    destroy_distributed()


if __name__ == "__main__":
    main(sys.argv[1])
