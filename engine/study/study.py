"""A study is a folder of runs, each done once: how it begins, who carries out its runs, how it ends.

A study goes on from where it stands: finished runs are recognised by their fingerprint, an unfinished one continues from its
newest checkpoint. Any number of processes may join the same study; its folder says what is left.
"""

import os
import sys
from argparse import Namespace
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from configs.spec import Loaded
from data.patience import PATIENCE
from engine.distributed import collectives
from engine.distributed.watchdog import speak_last
from engine.distributed.world import World, destroy_distributed, init_distributed
from engine.study.check import own_runs, refusals, refuse_changed
from engine.study.ending import say_again, to_its_end
from engine.study.launch import WORKER_SINCE, launch_workers
from engine.study.places import with_places
from engine.study.reuse import reuse_finished_runs
from engine.study.scheduler import Scheduler
from engine.study.stop_signal import StopSignal
from engine.study.worker import work
from engine.training import zero
from engine.training.check import refuse
from engine.training.inputs import StudyInputs
from engine.training.pairs import StudyPairs
from records.code import digest_now
from records.folder import RUNS


def run_study(loaded: Loaded, options: Namespace, command: str) -> int:
    """Carries out every run of the study that is not finished, then writes the report; the exit code. `command` is what goes
    on with the study, `options` the command line that a worker is started with."""
    return to_its_end(partial(_carry_out, loaded, options, command), command)


def _carry_out(loaded: Loaded, options: Namespace, command: str, stop: StopSignal) -> int:
    spec, source = loaded.spec, digest_now()
    PATIENCE.seconds, PATIENCE.leave = spec.wait_seconds, stop
    is_worker = WORKER_SINCE in os.environ  # started by another launch, which lists the runs and reports
    world = init_distributed(60 * spec.machine.timeout_minutes, spec.machine.threads)
    speak_last(partial(say_again, command))
    collectives.assert_equal_on_ranks(_facts_of_rank(loaded, source))
    shared = StudyInputs(RUNS / spec.name, world)
    loaded = with_places(loaded, shared.pairs, options.stage)
    scheduler = Scheduler.of(loaded, shared.study, options.stage)
    refuse(refusals(scheduler, shared))
    if not is_worker:
        collectives.on_rank_0(lambda: begin(scheduler, command, shared.pairs))
    if spec.sweep.executor == "here" or world.size > 1:
        zero.prepare()
        own = _own_part(scheduler, world)
        code = work(own, shared, stop, command)
        if code and world.first:
            say_again(command)
        collectives.barrier()  # all leave together: a launcher ends the others when the first is gone
        if code or own.runs == scheduler.runs:
            return code or (0 if is_worker else collectives.on_rank_0(lambda: conclude(scheduler, source)))
    destroy_distributed()
    if not world.first:
        return 0
    with stop.saving():
        code = launch_workers(scheduler, options, stop)
    if code > 128:
        say_again(command)
    return code or conclude(scheduler, source)


def _facts_of_rank(loaded: Loaded, source: str) -> dict[str, str]:
    """What must be the same on all ranks: the spec, the code, by its digest, and the libraries."""
    spec = blake2b(loaded.spec.model_dump_json().encode(), digest_size=6).hexdigest()
    libraries = {name: version(name) for name in ("torch", "deepspeed", "open_clip_torch")}
    return {"spec": spec, **libraries, "code of Antidote": source}


def _own_part(scheduler: Scheduler, world: World) -> Scheduler:
    """What these processes carry out themselves."""
    runs = own_runs(scheduler, world.size)
    if runs == scheduler.runs:
        return scheduler
    own = Scheduler.of(scheduler.loaded, scheduler.folder, "pretrain")
    own.runs = runs
    return own


def begin(scheduler: Scheduler, command: str, pairs: StudyPairs) -> None:
    """Takes over what other studies have finished and writes study.json; UserError if this one is being carried out under
    another spec, or a run was begun under one and is not finished."""
    folder, spec, runs = scheduler.folder, scheduler.loaded.spec, scheduler.all_stages.runs
    refuse_changed(scheduler)
    folder.mkdir(parents=True, exist_ok=True)
    for run, source in reuse_finished_runs(runs, folder, pairs.digest) if spec.machine.adopt else ():
        words = f"{run.folder} ({run.title}): finished in {source.parent}, taken over from there"
        print(f"{words} (the same fingerprint; machine.adopt=false does it again)", file=sys.stderr, flush=True)
    scheduler.write_study_json(command)


def conclude(scheduler: Scheduler, source: str) -> int:
    """Writes the report, shows it in TensorBoard, names it; 2 if runs failed, which it lists, else 0. `source` is the digest
    of the code that this process began with: another one's report is written by a process of its own."""
    if digest_now() == source:
        _report(scheduler.folder)
    else:
        words = "the code of Antidote has changed since this command began, so it writes no report"
        print(f"{words}; python -m report {scheduler.folder} writes it by the new code", file=sys.stderr, flush=True)
    failed = list(scheduler.failures())
    if failed:
        lines = [f"  {run.folder} ({run.title}): {message}" for run, message in failed]
        many = f"{len(failed)} of {len(scheduler.runs)} runs failed; the same command tries them again"
        print("\n".join([f"error: {many}", *lines]), file=sys.stderr, flush=True)
    return 2 if failed else 0


def _report(folder: Path) -> None:
    from engine.training.journal import show_report
    from report.write import write_report

    written = write_report(folder)
    show_report(folder / "tensorboard" / "report", written.figures, written.report.judged.sentences)
    print(f"report: {written.page}\ntensorboard --logdir {folder / 'tensorboard'}", flush=True)
