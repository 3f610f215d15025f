"""The one loop; pre-training and cleaning both use it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from data.pipeline import Batch
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.training.learner import Outcome
from engine.training.run_state import RunState


class Stopped(Exception):
    """The run was asked to stop and has saved."""


class Pruned(Exception):
    """The run is not worth going on with, and has saved; says why, and at which `step`."""

    def __init__(self, why: str, step: int) -> None:
        super().__init__(why)
        self.step = step


class Step(NamedTuple):
    """What the journal needs of a step; the batch itself, maybe hundreds of megabytes, goes when the step is done."""

    number: int  # from 0
    outcome: Outcome
    keys: list[str]
    poisoned: int


@dataclass
class Window:
    """What happened since the last row of the journal; nothing of it is asked of the device before the next."""

    begun: float
    steps: list[Step] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)


def train(
    run: RunState,
    feed: Iterable[tuple[int, Batch]],
    stop: Callable[[], bool],
    prune: Callable[[float], str | None],
) -> None:
    """Steps through the feed; Stopped after a save when any rank was asked to `stop`, Pruned after a save when `prune` of
    an epoch on the first rank gives a reason, UserError after too many steps in a row that were not taken."""
    world, epoch_steps = run.world, run.inputs.pairs.steps
    machine, measure_steps = run.inputs.run.spec.machine, run.inputs.run.settings.measure_steps
    last_save, window = time.monotonic(), Window(time.monotonic())
    for step, batch in feed:
        if step % epoch_steps == 0:
            run.begin_epoch(step // epoch_steps + 1)
        heartbeat()
        run.seed(step)
        window.steps.append(Step(step, run.learner.learn(batch, step), batch.keys, int(batch.poisoned.sum())))
        window.skipped.extend(batch.skipped)
        del batch
        done = step + 1
        ends_epoch = done % epoch_steps == 0
        logs = ends_epoch or done % machine.log_steps == 0
        if logs:
            write_row(run, window)
            if run.bad_batches.in_a_row >= machine.max_bad_steps:
                run.save(done)  # none of these steps was taken: the weights are those from before
                run.bad_batches.refuse(machine.max_bad_steps, done)
        if ends_epoch or measure_steps and done % measure_steps == 0:
            began = time.monotonic()
            run.measure(done // epoch_steps if ends_epoch else done / epoch_steps, done)
            window.begun += time.monotonic() - began
        if not logs:
            continue
        why = prune(done / epoch_steps) if ends_epoch and world.first else None
        window.begun = time.monotonic()
        save_due = world.first and time.monotonic() - last_save >= 60 * machine.save_minutes
        flags = [int(stop()), int(save_due), len(window.skipped), int(why is not None)]
        stops, saves, skipped, pruned = collectives.all_reduce_sum(flags)
        if skipped:
            run.bad_samples.add([entry for part in collectives.gather_objects(window.skipped) for entry in part], done)
            window.skipped = []
        if saves or stops or pruned:
            run.save(done)
            last_save = time.monotonic()
        if stops:
            raise Stopped
        if pruned:
            raise Pruned(why or "", done)


def write_row(run: RunState, window: Window) -> None:
    """A row of the journal: the last taken step's terms of the global batch, the scale, the gradient's norm where DeepSpeed
    knows it, the poisoned pairs, the pace; and a line for each batch whose step was not taken."""
    steps, window.steps = window.steps, []
    taken = torch.stack([step.outcome.taken for step in steps]).tolist()
    for step_taken, step in zip(taken, steps, strict=True):
        run.bad_batches.count(step_taken, step.number + 1, step.keys)
    done = steps[-1].number + 1
    epoch = -(-done // run.inputs.pairs.steps)
    seconds = time.monotonic() - window.begun
    pairs = sum(len(step.keys) for step in steps) * run.world.size
    timing = {"pairs_per_s": round(pairs / max(seconds, 1e-9), 1), "seconds": round(seconds, 3)}
    not_taken = {"bad_steps": taken.count(False)} if not all(taken) else {}
    if not any(taken):
        run.journal.row("bad", epoch=epoch, step=done, **not_taken, **timing)
        return
    outcome = next(step.outcome for flag, step in zip(reversed(taken), reversed(steps), strict=True) if flag)
    names = [*outcome.terms, "scale"]
    values = torch.stack([*outcome.terms.values(), run.learner.head.parameters["scale"].detach().exp().squeeze()]).tolist()
    numbers = dict(zip(names, values, strict=True))
    norm = run.engine.get_global_grad_norm()
    if norm is not None:
        numbers["grad_norm"] = float(norm)
    numbers["poisoned"] = collectives.all_reduce_sum([steps[-1].poisoned])[0]
    run.journal.row("step", epoch=epoch, step=done, **numbers, rate=outcome.rate, **not_taken, **timing)
