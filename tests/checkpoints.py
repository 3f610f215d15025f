"""What each of W ranks does with checkpoints, for tests/test_checkpoint.py: python tests/checkpoints.py FOLDER TURN...

A turn is STAGE,FROM,STEPS,TO,STEPS,TO...: a learner at that ZeRO stage loads the checkpoint FOLDER/FROM (none: it begins
anew), takes so many steps on 48 pairs that are the same for any W, saves FOLDER/TO, and so on.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # imported, it changes nobody's path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.path.append(str(Path(__file__).resolve().parent))

from exactness import GROUP, PAIRS, batch

from configs.machine import Machine
from configs.stage import Optimizer, Stage
from engine.distributed.world import World, destroy_distributed, init_distributed
from engine.models import clip
from engine.training import checkpoint, learner_state, zero
from engine.training.head import Head
from engine.training.learner import Learner
from engine.training.optimizer import Schedule
from engine.training.run_state import average_running_stats
from objectives.mmcl import Mmcl
from records.manifest import Manifest

MODEL, BEGUN = "test-resnet", 1


def make(stage_number: int, seed: int, world: World) -> Learner:
    # a large eps, so that rounding in tiny gradients stays rounding
    section = Optimizer(rate=1e-2, decay=0.1, eps=1e-3, warmup=1)
    stage = Stage(objective=Mmcl(kind="mmcl"), epochs=1, batch=PAIRS, optimizer=section)
    towers = clip.build(MODEL, seed).train()
    for norm in towers.norms:
        norm.rows = GROUP
    machine = Machine(zero=stage_number, precision="fp32")  # type: ignore[arg-type]
    optimizer = zero.wrap(towers, section, machine, world, PAIRS // world.size)
    head = Head.build(stage, clip.model_config(MODEL)["embed_dim"], {}, seed, world.device)
    return Learner(optimizer, head, stage, Schedule(section, 10, 5), world)


def turn(folder: Path, words: str, world: World) -> None:
    stage, source, *rest = words.split(",")
    done = 0
    learner = make(int(stage), 2 if source else BEGUN, world)
    if source:
        newest = checkpoint.newest(folder / source)
        assert newest is not None
        path, manifest = newest
        if stage == "3":  # after a step small parameters stay gathered: nothing of them may be left
            learner.learn(batch((1, 1), world), 0)
        learner_state.restore(learner, path, world)
        done = manifest.step
    for steps, target in zip(rest[::2], rest[1::2], strict=True):
        for _ in range(int(steps)):
            learner.learn(batch((1, 1), world), done)
            done += 1
        average_running_stats(learner.tower_optimizer.engine)
        facts = {"zero": int(stage), "world": world.size, "spec": {}, "versions": {}, "spent": {}}
        manifest = Manifest(step=done, journal=0, data="", **facts)  # type: ignore[arg-type]
        checkpoint.save(folder / target, manifest, learner_state.share(learner, world))
    learner.tower_optimizer.engine.destroy()


def main(folder: str, *turns: str) -> None:
    world = init_distributed()
    zero.prepare()
    for words in turns:
        turn(Path(folder), words, world)
    destroy_distributed()


if __name__ == "__main__":
    main(*sys.argv[1:])
