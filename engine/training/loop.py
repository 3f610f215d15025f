"""The one loop; pre-training and cleaning both use it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from data.pipeline import Batch
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.training.journal import Journal
from engine.training.learner import Learner, Outcome


@dataclass
class Cadence:
    """When things are due, and what to call then; every rank calls the same at the same step."""

    epoch_steps: int
    log_steps: int
    measure_steps: int | None
    save_seconds: float
    max_bad_steps: int
    stop: Callable[[], bool]  # whether this process was asked to stop
    begin: Callable[[int], None]  # (epoch), before its first step
    measure: Callable[[float, int], None]  # (epoch, step)
    save: Callable[[int], None]  # (step)
    account: Callable[[list[tuple[str, str, str]], int], None]  # (samples newly skipped, of all ranks; step)
    lament: Callable[[int, list[str]], None]  # (step, keys): a batch whose loss was not finite
    hopeless: Callable[[float], str | None]  # (epoch), on the first process: why the run should end early


class Stopped(Exception):
    """The run was asked to stop and has saved."""


class Pruned(Exception):
    """The run is not worth going on with, and has saved; says why, and at which `step`."""

    def __init__(self, why: str, step: int) -> None:
        super().__init__(why)
        self.step = step


@dataclass
class Window:
    """What happened since the last row of the journal; nothing of it is asked of the device before the next."""

    begun: float
    outcomes: list[tuple[int, Outcome, Batch]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    bad_in_a_row: int = 0


def train(learner: Learner, feed: Iterable[tuple[int, Batch]], journal: Journal, cadence: Cadence, world: World) -> None:
    """Steps through the feed; Stopped after a save when any rank was asked to stop, Hopeless when the first gives the run
    up, UserError after too many steps that were not taken."""
    saved, window = time.monotonic(), Window(time.monotonic())
    for step, batch in feed:
        if step % cadence.epoch_steps == 0:
            cadence.begin(step // cadence.epoch_steps + 1)
        heartbeat()
        window.outcomes.append((step, learner.learn(batch, step), batch))
        window.skipped.extend(batch.skipped)
        done = step + 1
        ends_epoch = done % cadence.epoch_steps == 0
        logs = ends_epoch or done % cadence.log_steps == 0
        if logs:
            _write(window, learner, journal, cadence, -(-done // cadence.epoch_steps), world)
            if window.bad_in_a_row >= cadence.max_bad_steps:
                cadence.save(done)  # none of these steps was taken: the weights are those from before
                raise UserError(
                    f"the loss was not finite in the last {window.bad_in_a_row} steps, to step {done}; none of them was "
                    f"taken, and the weights from before are saved; lower optimizer.rate, set optimizer.clip, or look at "
                    "bad_batches.jsonl"
                )
        if ends_epoch or cadence.measure_steps and done % cadence.measure_steps == 0:
            began = time.monotonic()
            epoch = done / cadence.epoch_steps
            cadence.measure(int(epoch) if ends_epoch else epoch, done)
            window.begun += time.monotonic() - began
        if not logs:
            continue
        why = cadence.hopeless(done / cadence.epoch_steps) if ends_epoch and world.first else None
        window.begun = time.monotonic()
        due = world.first and time.monotonic() - saved >= cadence.save_seconds
        asked = [int(cadence.stop()), int(due), len(window.skipped), int(why is not None)]
        stop, save, new, ends = collectives.all_reduce_sum(asked)
        if new:
            cadence.account([entry for part in collectives.gather_objects(window.skipped) for entry in part], done)
            window.skipped = []
        if save or stop or ends:
            cadence.save(done)
            saved = time.monotonic()
        if stop:
            raise Stopped
        if ends:
            raise Pruned(why or "", done)


def _write(window: Window, learner: Learner, journal: Journal, cadence: Cadence, epoch: int, world: World) -> None:
    """A row of the journal: the last taken step's terms of the global batch, the scale, the gradient's norm where DeepSpeed
    knows it, the poisoned pairs, the pace; and a line for each batch whose step was not taken."""
    outcomes, window.outcomes = window.outcomes, []
    taken = torch.stack([outcome.taken for _, outcome, _ in outcomes]).tolist()
    for flag, (step, _, batch) in zip(taken, outcomes, strict=True):
        window.bad_in_a_row = 0 if flag else window.bad_in_a_row + 1
        if not flag:
            cadence.lament(step + 1, [key for keys in collectives.gather_objects(batch.keys) for key in keys])
    done = outcomes[-1][0] + 1
    seconds = time.monotonic() - window.begun
    pairs = sum(len(batch.keys) for *_, batch in outcomes) * world.size
    timing = {"pairs_per_s": round(pairs / max(seconds, 1e-9), 1), "seconds": round(seconds, 3)}
    refused = {"bad_steps": taken.count(False)} if not all(taken) else {}
    if not any(taken):
        journal.row("bad", epoch=epoch, step=done, **refused, **timing)
        return
    last = max(i for i, flag in enumerate(taken) if flag)
    _, outcome, _ = outcomes[last]
    names = [*outcome.terms, "scale"]
    values = torch.stack([*outcome.terms.values(), learner.learned["scale"].detach().exp().squeeze()]).tolist()
    numbers = dict(zip(names, values, strict=True))
    norm = learner.engine.get_global_grad_norm()
    if norm is not None:
        numbers["grad_norm"] = float(norm)
    numbers["poisoned"] = collectives.all_reduce_sum([int(outcomes[-1][2].poisoned.sum())])[0]
    journal.row("step", epoch=epoch, step=done, **numbers, rate=outcome.rate, **refused, **timing)
