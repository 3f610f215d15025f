"""The one loop; pre-training and cleaning both use it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from data.patience import Left
from data.pipeline import Batch
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.evaluation.encode import Cut
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
    samples: torch.Tensor  # int64 [B]


@dataclass
class Window:
    """What happened since the last row of the journal; nothing of it is asked of the device before the next."""

    begun: float
    steps: list[Step] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    saved: float = field(default_factory=time.monotonic)  # when the run was last saved


Calls = tuple[Callable[[], bool], Callable[[float], str | None]]


def train(
    run: RunState,
    feed: Iterable[tuple[int, Batch]],
    stop: Callable[[], bool],
    prune: Callable[[float], str | None],
    due: int | None = None,
) -> None:
    """Steps through the feed, first evaluating at step `due` if that was left to be done; Stopped after a save when any rank
    was asked to `stop`, Pruned after a save when `prune` of an epoch on the first rank gives a reason, UserError after too
    many steps in a row that were not taken. Left if this rank of several is asked to stop while the feed waits for its
    data: the others can't come to where it stands."""
    epoch_steps = run.inputs.pairs.steps
    window = Window(time.monotonic())
    if due is not None:
        _conclude(run, window, due, (stop, prune))
    done = None
    try:
        for step, batch in feed:
            if step % epoch_steps == 0:
                run.begin_epoch(step // epoch_steps + 1)
            heartbeat()
            run.seed(step)
            outcome = run.learner.learn(batch, step)
            window.steps.append(Step(step, outcome, batch.keys, int(batch.poisoned.sum()), batch.samples))
            window.skipped.extend(batch.skipped)
            del batch
            done = step + 1
            _conclude(run, window, done, (stop, prune))
    except Left:
        if run.world.size > 1:
            raise
        if done is not None:
            _list_skipped(run, window, done)
            _save(run, window, done, False)
        raise Stopped from None


def _conclude(run: RunState, window: Window, done: int, calls: Calls) -> None:
    """What follows a step, or an evaluation that was left to be done: a row of the journal, the evaluation, a save, if it is
    time for them; Stopped and Pruned as `train`."""
    stop, prune = calls
    world, epoch_steps, machine = run.world, run.inputs.pairs.steps, run.inputs.run.spec.machine
    measure_steps = run.inputs.run.settings.measure_steps
    ends_epoch = done % epoch_steps == 0
    logs = ends_epoch or done % machine.log_steps == 0
    if logs and window.steps:
        write_row(run, window)
        if run.bad_batches.in_a_row >= machine.max_bad_steps:
            run.save(done)  # none of these steps was taken: the weights are those from before
            run.bad_batches.refuse(machine.max_bad_steps, done)
    is_cut = False
    if ends_epoch or measure_steps and done % measure_steps == 0:
        began = time.monotonic()
        is_cut = not _measured(run, done)
        window.begun += time.monotonic() - began
    if not logs and not is_cut:
        return
    why = prune(done / epoch_steps) if ends_epoch and world.first and not is_cut else None
    window.begun = time.monotonic()
    save_due = world.first and time.monotonic() - window.saved >= 60 * machine.save_minutes
    flags = [int(stop()), int(save_due), len(window.skipped), int(why is not None)]
    stops, saves, skipped, pruned = collectives.all_reduce_sum(flags)
    if skipped:
        _list_skipped(run, window, done)
    if saves or stops or pruned:
        _save(run, window, done, is_cut)
    if stops:
        raise Stopped
    if pruned:
        raise Pruned(why or "", done)


def _measured(run: RunState, done: int) -> bool:
    """Evaluates the run, unless that is cut short on all ranks, as one was asked to stop."""
    try:
        epoch_steps = run.inputs.pairs.steps
        run.measure(done // epoch_steps if done % epoch_steps == 0 else done / epoch_steps, done)
    except Cut:
        return False
    except Left:
        if run.world.size > 1:
            raise
        return False
    return True


def _list_skipped(run: RunState, window: Window, done: int) -> None:
    skipped, window.skipped = window.skipped, []
    run.bad_samples.add([entry for part in collectives.gather_objects(skipped) for entry in part], done)


def _save(run: RunState, window: Window, done: int, due: bool) -> None:
    """Saves the run at any step, also amid what will be one row of the journal."""
    count_steps(run, window)
    run.save(done, due)
    window.saved = time.monotonic()


def count_steps(run: RunState, window: Window) -> list[bool]:
    """Which steps since the last row were taken; they are counted, once, and those that were not are listed. Their pairs'
    losses are noted."""
    steps = window.steps
    if run.pair_losses is not None:
        losses = [step.outcome.pair_losses for step in steps]
        known = [loss for loss in losses if loss is not None]
        run.pair_losses.add([step.number for step in steps], [step.samples for step in steps], known)
    taken: list[bool] = torch.stack([step.outcome.taken for step in steps]).tolist() if steps else []
    for step_taken, step in zip(taken, steps, strict=True):
        run.bad_batches.count(step_taken, step.number + 1, step.keys)
    return taken


def write_row(run: RunState, window: Window) -> None:
    """A row of the journal: the last taken step's terms of the global batch, the scale, the gradient's norm where DeepSpeed
    knows it, the poisoned pairs, the pace; and a line for each batch whose step was not taken."""
    taken, steps = count_steps(run, window), window.steps
    window.steps = []
    done = steps[-1].number + 1
    epoch = -(-done // run.inputs.pairs.steps)
    seconds = time.monotonic() - window.begun
    pairs = sum(len(step.keys) for step in steps) * run.world.size
    timing = {"pairs_per_s": round(pairs / max(seconds, 1e-9), 1), "seconds": round(seconds, 3)}
    bad = run.bad_batches.logged()
    not_taken = {"bad_steps": bad} if bad else {}
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
