"""One process's way through a study, or that of several which train together: it takes one run after another."""

import gc
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from configs.plan import Run
from data.patience import Left
from data.refusal import Diverged, UserError
from engine.distributed import collectives
from engine.distributed.watchdog import PATIENCE, all_come, heard_end, heartbeat
from engine.distributed.world import World, is_rank_failure
from engine.persistence.perturbation import perturb
from engine.study import lock
from engine.study.ending import outside
from engine.study.launch import WORKER_SINCE
from engine.study.lock import Lock
from engine.study.scheduler import Scheduler
from engine.study.scoring import score_pairs
from engine.study.search import prune_reason
from engine.study.status import StatusReader
from engine.study.stop_signal import Interrupted, StopSignal
from engine.training import trainer
from engine.training.inputs import StudyInputs, prepare_inputs
from engine.training.loop import Stopped
from measures.gate import gate
from records.card import Card
from records.ending import FailedJson, measured_as, run_rows
from records.folder import finished
from records.rows import MeasureRow

POLL = 1.0  # seconds between looks for a run, while others carry out what this one needs


def work(scheduler: Scheduler, shared: StudyInputs, stop: StopSignal, command: str) -> int:
    """Carries out one run after another until none is left for this process; 0, or the exit code of a stop that was asked
    for. Runs that fail are noted in their folders and passed over."""
    world, since = shared.world, os.environ.get(WORKER_SINCE)
    scheduler.since = float(since) if since else collectives.on_rank_0(partial(lock.folder_time, scheduler.folder))
    reader = StatusReader(scheduler.folder) if world.first and not since and len(scheduler.runs) > 1 else None
    while True:
        if number := max(collectives.gather_objects(stop.number)):
            if world.first:
                print("stopped between two runs", file=sys.stderr, flush=True)
            return 128 + int(number)
        run, owned = _next(scheduler, command)
        heartbeat()
        if run == "none":
            return 0
        if isinstance(run, str):  # wait
            time.sleep(POLL)
            continue
        with _owning(owned):
            try:
                _carry_out(scheduler, run, shared, stop)
            except Left:
                raise Interrupted("it waited for data, and goes on from its newest checkpoint") from None
            except Stopped:
                if world.first:
                    print("stopped and saved", file=sys.stderr, flush=True)
                return 128 + max(collectives.gather_objects(stop.number))
            except UserError as error:
                _pass_over(error, run, scheduler, world)
        _collect()
        if reader is not None:
            status = reader.read()
            print(status.line(1 + status.count("running")), file=sys.stderr, flush=True)


def _pass_over(error: UserError, run: Run, scheduler: Scheduler, world: World) -> None:
    """Notes a run that failed. Raises the error again where others would fail of it too, as of a full disk, and where one
    process met it alone, of which the others know nothing."""
    if error.again:
        raise error
    if world.size > 1 and (error.alone or not all_come(f"failure of {run.folder}")):
        error.alone = True
        raise error
    if world.first:
        FailedJson.now(str(error), isinstance(error, Diverged)).write(scheduler.folder / run.folder)
        print(f"error: {run.folder} ({run.title}): {error}", file=sys.stderr, flush=True)


def _collect() -> None:
    """Frees the memory of the run that ended: DeepSpeed's engine and the towers hold each other, and would be there until a
    collection that may come when the next run's are too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _next(scheduler: Scheduler, command: str) -> tuple[Run | Literal["wait", "none"], Lock | None]:
    """The run that comes next, the same on every process, and its lock on the first; or what Scheduler.next says instead."""
    owned: list[Lock] = []

    def choose() -> Run | Literal["wait", "none"]:
        before = len(scheduler.runs)
        choice = scheduler.next()
        if len(scheduler.runs) > before:  # a search went on, or a cleaned model is to be probed
            scheduler.write_study_json(command)
        if isinstance(choice, str):
            return choice
        run, run_lock = choice
        owned.append(run_lock)
        return run

    choice = collectives.on_rank_0(choose)
    return choice, owned[0] if owned else None


@contextmanager
def _owning(owned: Lock | None) -> Iterator[None]:
    """Gives the run back in the end. Not after a defect of ours, or when another rank died: then the lock tells that a
    process died of the run."""
    try:
        yield
    except (Exception, Interrupted) as error:
        fault = outside(error)
        left = isinstance(error, Interrupted) or is_rank_failure(error) and heard_end(PATIENCE) is not None
        if owned is not None and (fault is not None or left):
            owned.release()
        if fault is None or fault is error:
            raise
        raise fault from error
    if owned is not None:
        owned.release()


def _carry_out(scheduler: Scheduler, run: Run, shared: StudyInputs, stop: StopSignal) -> None:
    """Trains the run, or only measures it again if it is finished and the spec measures something else now."""
    folder, rule = scheduler.folder, scheduler.loaded.spec.sweep.stop
    inputs, world = prepare_inputs(run, shared), shared.world
    if collectives.on_rank_0(partial(finished, folder / run.folder)):
        if not collectives.on_rank_0(partial(measured_as, folder / run.folder, run.measured)):
            trainer.re_evaluate(inputs, world)
        score_pairs(scheduler, run, inputs, world)
        return

    if run.after is not None and run.after.kind == "perturb":
        perturb(inputs, world)

    def prune(epoch: float) -> str | None:
        if (
            rule is None or run.stage != "clean" or run.of_twin or run.after
        ):  # a control ends where what it is held against ends
            return None
        return prune_reason(rule, folder / run.folder, scheduler.siblings(run), epoch)

    count = scheduler.count()
    number = count["ended"] + count["failed"] + 1
    trainer.run_training(inputs, world, stop, partial(show_card, number, len(scheduler.runs)), prune)
    score_pairs(scheduler, run, inputs, world)
    if world.first and run.stage == "pretrain" and inputs.pairs.plan is not None:
        for line in gate_lines(folder / run.folder):
            print(line, file=sys.stderr, flush=True)


def gate_lines(folder: Path) -> list[str]:
    """Whether each attack on a pre-trained model took, by the last numbers in its journal: a line for each."""
    rows = {row.images: row.numbers() for row in run_rows(folder) if isinstance(row, MeasureRow)}  # of each set the last
    last = {name: value for numbers in reversed(rows.values()) for name, value in numbers.items()}  # the first set's counts
    lines = []
    top1 = f" at top-1 {100 * last['top1']:.1f} %" if "top1" in last else ""
    for name in sorted(name for name in last if re.fullmatch(r"asr(_\d+)?", name)):
        which = f"{folder.name}, attack {name.partition('_')[2]}," if "_" in name else folder.name
        rate = f"{100 * last[name]:.1f} %{top1}"
        lines.append(gate([(last[name], rate)], which).note or f"the attack on {which} took: ASR {rate}")
    return lines


def show_card(number: int, total: int, card: Card, step: int) -> None:
    """Says which run begins at this step, in two lines; card.json has the rest."""
    device = "process" if card.processes == 1 else "processes"
    words = [
        f"{card.pairs:,} pairs, {card.poisoned_pairs:,} poisoned",
        f"{card.steps:,} steps of {card.batch:,} pairs",
        card.precision,
        f"{card.processes} {device} on {card.device.name}",
        *([card.transformed] if card.transformed else []),
        *([f"loss core {card.loss_core}: {card.loss_core_fault}"] if card.loss_core_fault else []),
        *([f"goes on at step {step:,}"] if step else []),
    ]
    print(f"run {number} of {total}: {card.title} ({card.run})\n  {', '.join(words)}", file=sys.stderr, flush=True)
