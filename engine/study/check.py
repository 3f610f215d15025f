"""What a study refuses before its first run: by its spec and files, by what is in its folder."""

from functools import partial
from pathlib import Path
from typing import Any

from configs.named_files import refuse_changed_file
from configs.plan import Run, differences
from data.refusal import Missing, UserError
from engine.distributed import collectives
from engine.persistence.probes import check_poisoned, prospects
from engine.study import lock
from engine.study.scheduler import Scheduler
from engine.study.slurm import refuse_unfit_workers
from engine.training import check
from engine.training.checkpoint import assert_readable, committed
from engine.training.inputs import StudyInputs
from records.card import Card
from records.ending import FailedJson
from records.folder import finished
from records.json_file import Damaged
from records.spec_json import read_decides, stage_of
from records.study_json import StudyJson

ELSEWHERE = ("executor", "jobs", "processes", "slurm", "limit")  # of a sweep: who carries it out


def own_runs(scheduler: Scheduler, processes: int) -> list[Run]:
    """What so many processes carry out themselves: all; of several that start workers the pre-trainings; of one none."""
    sweep = scheduler.loaded.spec.sweep
    return [run for run in scheduler.runs if check.carries_out(sweep, run, processes)]


def refusals(scheduler: Scheduler, shared: StudyInputs) -> check.Refusals:
    """What is refused of the runs that are left."""
    sweep, size = scheduler.loaded.spec.sweep, shared.world.size
    # told by the first process: another study's process may end one of them at this moment
    names = collectives.on_rank_0(lambda: {run.folder for run in scheduler.runs if scheduler.state(run) != "ended"})
    left = [run for run in scheduler.runs if run.folder in names]
    met: dict[str, UserError] = {}
    for run in left:
        if run.start is not None and run.start not in scheduler.planned and not scheduler.ready(run):
            words = f"{scheduler.folder / run.start.folder} is not finished; run the pretrain stage first, or both at once"
            met[words] = Missing(words)
        checkpoints = committed(scheduler.folder / run.folder / "checkpoints")
        try:
            for path in checkpoints[-1:]:
                assert_readable(path)
        except UserError as error:
            met[str(error)] = error
    if sweep.executor == "slurm" and not all(check.carries_out(sweep, run, size) for run in left):
        try:
            collectives.on_rank_0(partial(refuse_unfit_workers, sweep))
        except UserError as error:
            met[str(error)] = error
    left += [tuning for run in left for tuning in prospects(run)]
    for tuning in [run for run in left if run.after is not None]:
        try:
            check_poisoned(tuning, shared.pairs)
        except UserError as error:
            met[str(error)] = error
            left.remove(tuning)
    ranks = [size if check.carries_out(sweep, run, size) else sweep.processes for run in left]
    return [*met.values(), *check.refusals(zip(left, ranks, strict=True), shared)]


def refuse_changed(scheduler: Scheduler) -> None:
    """UserError if the study is being carried out under another spec, or a run was begun under one and is not finished."""
    _refuse_other_spec(scheduler)
    planned = scheduler.all_stages.runs
    _refuse_other_files(scheduler.folder, planned)
    _refuse_orphans(scheduler.folder, planned, scheduler.runs)


def _refuse_other_spec(scheduler: Scheduler) -> None:
    """UserError if living processes carry the study out under another spec, or under one that can't be read."""
    try:
        old = StudyJson.read(scheduler.folder)
    except Damaged as damage:
        changes = [damage.fault]
    else:
        if old is None:
            return
        changes = differences(_shared(old.spec), _shared(scheduler.loaded.spec.model_dump(mode="json")))
    running = lock.running(scheduler.folder) if changes else []
    if running:
        raise UserError(
            f"{scheduler.folder} is being carried out under another spec ({'; '.join(changes)}; running: {running[0]}); "
            "join it with the same spec, or give this one another name"
        )


def _refuse_other_files(folder: Path, runs: list[Run]) -> None:
    """UserError if a file that a run's spec names holds other bytes than when the run began."""
    for home in (folder / run.folder for run in runs):
        if (card := Card.read_whole(home)) is not None:
            refuse_changed_file(home, card.files)


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    """What all that join a study must agree on."""
    sweep = {name: value for name, value in spec.get("sweep", {}).items() if name not in ELSEWHERE}
    return {**{name: value for name, value in spec.items() if name not in ("machine", "question")}, "sweep": sweep}


def _refuse_orphans(folder: Path, planned: list[Run], candidates: list[Run]) -> None:
    """UserError for a run in the folder that has a checkpoint, is not finished, and is no longer in the plan."""
    names = {run.folder for run in planned}
    for path in sorted(folder.glob("*/spec.json")):
        home = path.parent
        ended = finished(home) or (home / FailedJson.FILE).is_file()
        if ended or home.name in names or not committed(home / "checkpoints"):
            continue
        try:
            begun = read_decides(home) or {}
            changes = [differences(begun, run.decides) for run in candidates if run.stage == stage_of(begun)]
            nearest = min(changes, key=len, default=["its stage is gone from the spec"])
        except Damaged as damage:
            nearest = [damage.fault]
        raise UserError(
            f"{home} was begun under another spec and is not finished ({'; '.join(nearest)}); "
            "put the spec back to go on with it, give the changed spec another name, or delete that folder"
        )
