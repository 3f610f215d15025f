"""A study is a folder of runs, each done once: its list of them, one process's way through it, its end."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from configs.plan import Run, differences
from configs.spec import Spec
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.study import lock as claim
from engine.study.median_pruner import hopeless
from engine.study.reuse import reuse_finished_runs
from engine.study.scheduler import Scheduler, siblings
from engine.study.status import Surveyor
from engine.training import trainer as job
from engine.training.checkpoint import DiskFull, committed
from engine.training.inputs import prepare_inputs
from engine.training.loop import Stopped
from records.card import Card, Fact
from records.ending import FailedJson
from records.folder import finished, read_json
from records.study_json import StudyJson

HELPS = "ANTIDOTE_HELPS"  # set by engine/study/launch.py in a job: since when who started it tries runs
POLL = 1.0  # seconds between looks for a run, while others carry out what this one needs
ELSEWHERE = ("executor", "jobs", "processes", "slurm", "limit")  # of a sweep: who carries it out


def begin(agenda: Scheduler, command: str) -> None:
    """Writes study.json; UserError if the study is being carried out under another spec, or a run was begun under one and is
    not finished."""
    folder, spec, whole = agenda.folder, agenda.loaded.spec, agenda.whole
    known = {run.folder for run in whole.runs}
    old = StudyJson.read(folder)
    if old is not None and (changes := differences(_shared(old.spec), _shared(spec.model_dump(mode="json")))):
        busy = [one.parent.name for one in folder.glob("*/claim.*") if (held := claim.holder(one.parent)) and held.alive]
        if busy:
            raise UserError(
                f"{folder} is being carried out under another spec ({'; '.join(changes)}; running: {busy[0]}); join it with "
                "the same spec, or give this one another name"
            )
    for told in sorted(folder.glob("*/spec.json")):
        run = told.parent
        given_up = finished(run) or (run / FailedJson.FILE).is_file()
        if given_up or run.name in known or not committed(run / "checkpoints"):
            continue
        begun = read_json(told)
        card = Card.read(run)
        stage = card.stage if card is not None else run.name.split("-")[0]
        rival = [differences(begun, run_.decides) for run_ in agenda.runs if run_.stage == stage]
        rival.sort(key=len)
        changes = rival[0] if rival else ["its stage is gone from the spec"]
        raise UserError(
            f"{run} was begun under another spec and is not finished ({'; '.join(changes)}); "
            "put the spec back to go on with it, give the changed spec another name, or delete that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for one, there in reuse_finished_runs(whole.runs, folder) if spec.machine.adopt else ():
        print(f"{one.folder} ({one.title}): finished in {there.parent}, taken over from there", file=sys.stderr, flush=True)
    _list(whole, command)


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    """What all that join a study must agree on."""
    sweep = {name: value for name, value in spec.get("sweep", {}).items() if name not in ELSEWHERE}
    return {**{name: value for name, value in spec.items() if name not in ("machine", "question")}, "sweep": sweep}


def _list(agenda: Scheduler, command: str) -> None:
    spec: Spec = agenda.loaded.spec
    StudyJson(
        name=spec.name,
        command=command,
        question=spec.question,
        target=spec.attack.target,
        spec=spec.model_dump(mode="json"),
        runs=[run.entry() for run in agenda.whole.runs],
    ).write(agenda.folder)


def check(agenda: Scheduler, world: World) -> None:
    """UserError for whatever is wrong with the data of any run that is left, before anything is trained."""
    seen: set[str] = set()
    for run in agenda.runs:
        if run.start is not None and run.start not in agenda.runs and not finished(agenda.folder / run.start.folder):
            raise UserError(
                f"{agenda.folder / run.start.folder} is not finished; run the pretrain stage first, or both at once"
            )
        same = repr((run.stage, run.spec.data, run.spec.attack, run.spec.model, run.spec.seed, run.settings.objective,
                     run.settings.batch, run.settings.start, run.settings.transform and run.settings.transform.kind,
                     run.start and run.start.folder))  # fmt: skip
        if same not in seen and agenda.state(run) != "ended":
            prepare_inputs(run, agenda.folder, world)
        seen.add(same)


def work(agenda: Scheduler, world: World, asked: Callable[[], int], command: str) -> int:
    """Carries out one run after another until none is left for this process; 0, or the exit code of a stop that was asked
    for. Runs that fail are noted in their folders and passed over."""
    helps = os.environ.get(HELPS)
    agenda.since = float(helps) if helps else collectives.on_rank_0(partial(claim.now, agenda.folder))
    surveyor = Surveyor(agenda.folder) if world.first and not helps and len(agenda.runs) > 1 else None
    while True:
        if sign := max(collectives.gather_objects(asked())):
            return 128 + int(sign)
        run, held = _taken(agenda, command)
        heartbeat()
        if run == "none":
            return 0
        if isinstance(run, str):
            time.sleep(POLL)
            continue
        with _holding(held):
            try:
                _carry_out(agenda, run, world, asked)
            except Stopped:
                if world.first:
                    print("stopped and saved", file=sys.stderr, flush=True)
                return 128 + (max(collectives.gather_objects(asked())) or signal.SIGTERM)
            except UserError as refusal:
                # of a full disk others would die too; of what one process met alone the others know nothing
                if isinstance(refusal, DiskFull) or refusal.alone and world.size > 1:
                    raise
                if world.first:
                    FailedJson.now(str(refusal)).write(agenda.folder / run.folder)
                    print(f"error: {run.folder} ({run.title}): {refusal}", file=sys.stderr, flush=True)
        if surveyor is not None:
            survey = surveyor.survey()
            print(survey.line(1 + survey.count("running")), file=sys.stderr, flush=True)


def _taken(agenda: Scheduler, command: str) -> tuple[Run | Literal["wait", "none"], claim.Claim | None]:
    """The run that comes next, the same on every process, and its claim on the first; or what Agenda.next says instead."""
    held: list[claim.Claim] = []

    def take() -> str:
        before = len(agenda.runs)
        found = agenda.next()
        if len(agenda.runs) > before:  # a search went on
            _list(agenda, command)
        if isinstance(found, str):
            return found
        held.append(found[1])
        return found[0].folder

    name = collectives.on_rank_0(take)
    if name in ("wait", "none"):
        return name, None
    agenda.renew()
    return next(run for run in agenda.runs if run.folder == name), held[0] if held else None


@contextmanager
def _holding(held: claim.Claim | None) -> Iterator[None]:
    """Gives the run back in the end. Not after a defect of ours: then the claim tells that its process died of the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if held is not None:
            held.release()
        raise DiskFull(f"disk full ({error.strerror}); free some space and run the same command again") from error
    except UserError:
        if held is not None:
            held.release()
        raise
    if held is not None:
        held.release()


def _carry_out(agenda: Scheduler, run: Run, world: World, asked: Callable[[], int]) -> None:
    folder, rule = agenda.folder, agenda.loaded.spec.sweep.stop
    ready = prepare_inputs(run, folder, world)
    if finished(folder / run.folder):
        job.re_evaluate(ready, world)
        return

    def judge(epoch: float) -> str | None:
        if rule is None or run.stage != "clean":
            return None
        return hopeless(rule, folder / run.folder, siblings(agenda, run), epoch)

    count = agenda.count()
    number = count["ended"] + count["failed"] + 1
    job.run_training(ready, world, lambda: bool(asked()), partial(show_card, number, len(agenda.runs)), judge)


def show_card(number: int, total: int, card: Card, step: int) -> None:
    """Prints the card of a run that begins at this step."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for fact in (*card.facts(), *card.machine_facts(), *([Fact("goes on at step", f"{step:,}")] if step else [])):
        table.add_row(*fact)
    console = Console(stderr=True, markup=False, width=None if sys.stderr.isatty() else 120)
    console.print(Panel(table, title=f"run {number} of {total}: {card.title} ({card.run})", title_align="left"))


def conclude(agenda: Scheduler) -> int:
    """Writes the report, shows it in TensorBoard, names it; 2 if runs failed, which it lists, else 0."""
    from engine.training.journal import show_report
    from report.write import write_report

    folder = agenda.folder
    report = write_report(folder)
    show_report(folder / "tensorboard" / "report", report.figures, report.sentences)
    print(f"report: {report.page}\ntensorboard --logdir {folder / 'tensorboard'}", flush=True)
    failed = list(agenda.failures())
    if failed:
        lines = [f"  {run.folder} ({run.title}): {words}" for run, words in failed]
        many = f"{len(failed)} of {len(agenda.runs)} runs failed; the same command tries them again"
        print("\n".join([f"error: {many}", *lines]), file=sys.stderr, flush=True)
    return 2 if failed else 0
