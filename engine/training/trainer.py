"""One run from its spec to its finished folder: builds each part from its section, goes on from where it stands.

runs/NAME/STAGE-FINGERPRINT/
    spec.json card.json metrics.jsonl poison.json poison.png skipped.jsonl checkpoints/ weights.safetensors finished.json
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from data.pipeline import batches
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models import clip
from engine.training import zero
from engine.training.bad_samples import BadBatches, BadSamples
from engine.training.build import Built, build
from engine.training.inputs import RunInputs
from engine.training.journal import Journal
from engine.training.loop import Pruned, train
from engine.training.outputs import card_of, finish, open_folder, write_pictures
from engine.training.pair_losses import PairLosses
from engine.training.run_state import RunState, evaluate_sets, restore
from engine.training.usage import UsageMeter
from records.card import Card
from records.ending import FailedJson, FinishedJson, PrunedJson, verify_files
from records.folder import WEIGHTS
from records.rows import FILE, read_rows

LONG = 60.0  # seconds of the first evaluation after which its rows are worth a checkpoint


class Stop(Protocol):
    """Whether this process was asked to stop; inside `saving` it is asked, elsewhere it ends without."""

    def __call__(self) -> bool:
        """Whether it was."""
        ...

    def saving(self) -> AbstractContextManager[None]:
        """Where whoever asks saves."""
        ...


Calls = tuple[Stop, Callable[[Card, int], None], Callable[[float], str | None]]


def run_training(
    inputs: RunInputs,
    world: World,
    stop: Stop,
    say: Callable[[Card, int], None],
    prune: Callable[[float], str | None] = lambda epoch: None,
) -> None:
    """Carries the run out to its end, from its newest checkpoint if it has one; Stopped if it was asked to stop.

    On the first process `say(card, step)` shows the run and the step at which it goes on, 0 at its first start, and
    `prune(epoch)` says why the run should end early, after an epoch's measures, or None.
    """
    usage = UsageMeter(world)
    built = build(inputs, world)
    try:
        _train(inputs, world, built, usage, (stop, say, prune))
    finally:
        built.learner.tower_optimizer.engine.destroy()


def _train(inputs: RunInputs, world: World, built: Built, usage: UsageMeter, calls: Calls) -> None:
    """The run from its newest checkpoint on; `calls` as run_training takes them."""
    stop, say, prune = calls
    begin = restore(inputs, built.learner, world)
    usage.before = begin.usage
    collectives.on_rank_0(lambda: open_folder(inputs))
    card = card_of(inputs, world, built.facts)
    if world.first:
        for old in (PrunedJson.FILE, FailedJson.FILE):
            (inputs.folder / old).unlink(missing_ok=True)
        card.write(inputs.folder)
        say(card, begin.step)
    journal = Journal(inputs.folder, inputs.run.entry(), inputs.steps, begin.step, begin.journal_bytes, world.first)
    bad_samples = BadSamples(inputs, world, journal)
    bad_batches = BadBatches(inputs.folder, world, begin.bad)
    run = RunState(
        inputs, world, built.learner, journal, bad_samples, bad_batches, usage, card.versions, built.start_weights, stop,
        PairLosses.of(inputs, world),
    )  # fmt: skip
    try:
        if not begin.journal_bytes:
            if world.first:
                write_pictures(inputs, journal)
            began = time.monotonic()
            run.measure(0, 0)
            if collectives.on_rank_0(lambda: time.monotonic() - began > LONG):
                run.save(0)  # it need not be done again
        bad_samples.begin(begin.step)
        with stop.saving():
            feed = batches(inputs.pairs, inputs.run.settings.epochs, begin.step, inputs.workers)
            train(run, feed, stop, prune, begin.step if begin.due else None)
            bad_batches.refuse_end(inputs.steps)
            finish(run)
    except Pruned as pruned:
        elapsed = usage.total()
        if world.first:
            PrunedJson(step=pruned.step, why=str(pruned), **elapsed).write(inputs.folder)
        collectives.barrier()
    finally:
        journal.close()


def re_evaluate(inputs: RunInputs, world: World) -> None:
    """Measures a finished run again, since the spec now measures something else: new rows at its last step, which say where
    the rows of earlier epochs are of other pictures. What that takes is added to what the run has taken."""
    verify_files(inputs.folder, WEIGHTS)
    end = FinishedJson.read(inputs.folder)
    assert end is not None, "only finished runs are measured again"
    usage = UsageMeter(world, end.model_dump(include={"seconds", "joules"}, exclude_none=True))
    towers = clip.build(inputs.run.spec.model.name, inputs.run.spec.seed)
    learned = clip.load_weights(towers, inputs.folder / WEIGHTS)
    if zero.precision(inputs.run.spec.machine, world.device) == "bf16":
        towers.compute_in(torch.bfloat16)
    read_rows(inputs.folder / FILE, end.journal)  # Damaged if it is not whole
    collectives.barrier()  # before the first process cuts off what a launch left that was killed here
    journal = Journal(inputs.folder, inputs.run.entry(), end.steps, end.steps, end.journal, world.first)
    began = time.monotonic()
    for numbers in evaluate_sets(inputs, towers.to(world.device), learned, world):
        seconds = round(time.monotonic() - began, 3)
        before, now = (_defined(measured, numbers["images"]) for measured in (end.measured, inputs.run.measured))
        if before is not None and before != now:
            numbers["anew"] = True
        journal.row("measure", epoch=inputs.run.settings.epochs, step=end.steps, **numbers, seconds=seconds)
    taken = usage.total()
    if world.first:
        update = {"measured": inputs.run.measured, "journal": journal.committed_bytes()}
        update |= {"seconds": taken["seconds"], "joules": taken.get("joules")}
        end.model_copy(update=update).write(inputs.folder)
    journal.close()
    collectives.barrier()


def _defined(measured: dict[str, Any], images: str) -> list[Any] | None:
    """What the numbers on a set are of, whatever is measured: its pictures, its labels, of a twin the attack. None where
    nothing was measured on it."""
    sets = measured.get("test") or {}
    return [sets[images], measured.get("labels"), measured.get("attack")] if images in sets else None
