"""Several runs of a study at once, each in processes of its own: on this machine, or as a Slurm array, by submitit.

A worker runs the study's own command, which joins the study: it takes one run after another until none is left. So there is
nothing to hand out, and workers may be added, killed or put back into the queue at any time.
"""

import os
import signal
import sys
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from configs.sweep import Sweep
from data.jobs import LIMIT, executor, submit
from engine.distributed.world import cores
from engine.study import lock
from engine.study.command import StudyCommand
from engine.study.scheduler import Scheduler
from engine.study.slurm import slurm_settings
from engine.study.status import LiveView
from engine.study.stop_signal import StopSignal

WORKER_SINCE = "ANTIDOTE_WORKER_SINCE"  # set in a worker: since when who started it tries runs
SCRIPT = Path(__file__).resolve().parents[1] / "run.py"
POLL = 1.0  # seconds between looks
GRACE = 600.0  # seconds that a worker may take to save when it is asked to stop
DEATHS = 20  # of workers in turn while no run comes further, after which something must be wrong with the machine
MEMORY = 2.5 * 2**30  # bytes of a process on CPU: imports, towers, evaluation pictures


@dataclass
class WorkerSlot:
    """Room for one worker: its GPUs on this machine, and the job that is in it."""

    gpus: list[str]
    job: Any = None  # submitit's
    note: Path = Path()

    @property
    def busy(self) -> bool:
        """Whether its job goes on."""
        return self.job is not None and not self.job.done()

    def error(self) -> str:
        """The last error that its worker printed, if it ended with code 2; else ''."""
        with suppress(OSError):
            if self.note.read_text().split()[1:] == ["2"]:
                lines = Path(self.job.paths.stderr).read_text("utf-8", "replace").splitlines()
                return next(
                    (line for line in reversed(lines) if line.startswith("error")), f"error: see {self.job.paths.stderr}"
                )
        return ""


def worker_slots(sweep: Sweep, runs: int) -> list[WorkerSlot]:
    """Room for as many workers as go on at once: one a GPU or group of them, or as many as CPU and memory carry."""
    import psutil
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    gpus = [name for name in visible.split(",") if name] if visible is not None and count else [str(i) for i in range(count)]
    each, local = sweep.processes, sweep.executor == "local"
    if sweep.jobs != "auto":
        most = int(sweep.jobs)
    elif not local:
        most = runs
    elif gpus:
        most = len(gpus) // each
    else:
        most = min(cores() // each, int(psutil.virtual_memory().available / (MEMORY * each)))
    groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)] if local else []
    return [WorkerSlot(groups[i % len(groups)] if groups else []) for i in range(max(1, min(most, runs)))]


def worker_words(options: Namespace, sweep: Sweep, threads: int | None, port: int) -> list[str]:
    """The command line of a worker."""
    words = ["--spec", options.spec, *(word for setting in options.set for word in ("--set", setting))]
    if options.stage:
        words += ["--stage", options.stage]
    words += ["--set", "sweep.executor=here"]
    if threads is not None:
        words += ["--set", f"machine.threads={threads}"]
    if sweep.processes == 1:
        return [sys.executable, str(SCRIPT), *words]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", str(sweep.processes), "--master_port", str(port), str(SCRIPT), *words]


def launch_workers(scheduler: Scheduler, options: Namespace, stop: StopSignal) -> int:
    """Starts workers until every run has ended or failed, and shows how far they are; 0, or the exit code of a stop that was
    asked for, or 2 if workers die again and again."""
    sweep, folder = scheduler.loaded.spec.sweep, scheduler.folder
    scheduler.since = lock.folder_time(folder)
    slots = worker_slots(sweep, max(1, scheduler.count()["open"]))
    view, deaths, stood = LiveView(folder, scheduler.stage), 0, scheduler.progress()
    try:
        while True:
            if stop.number:
                return _stop_workers(slots, sweep, 128 + stop.number)
            open_runs = scheduler.count()["open"]
            free = [slot for slot in slots if not slot.busy]
            if not open_runs and len(free) == len(slots):
                if not scheduler.search_further():
                    return 0
                continue
            died = [slot for slot in free if slot.job is not None] if open_runs else []
            if died:
                before, stood = stood, scheduler.progress()
                deaths = len(died) + (deaths if stood == before else 0)
            errors = [error for slot in died if (error := slot.error())]
            if errors:  # not of one run, but of all: a full disk, say
                print(errors[0], file=sys.stderr, flush=True)
                return _stop_workers(slots, sweep, 2)
            if deaths > DEATHS:
                print(f"error: workers ended {deaths} times before the runs did; see the logs in {folder / '.jobs'}",
                      file=sys.stderr)  # fmt: skip
                return 2
            for slot in free:
                slot.job = None
            if wanted := free[: max(0, open_runs - (len(slots) - len(free)))]:
                _start(wanted, scheduler, options, len(slots))
            view.show(len(slots))
            time.sleep(POLL)
            scheduler.refresh()
    finally:
        view.end()


def _start(free: list[WorkerSlot], scheduler: Scheduler, options: Namespace, workers: int) -> None:
    """Puts a worker into each of these slots; those of Slurm as one array."""
    sweep, machine = scheduler.loaded.spec.sweep, scheduler.loaded.spec.machine
    home = scheduler.folder / ".jobs"
    home.mkdir(parents=True, exist_ok=True)
    local = sweep.executor == "local"
    shares_cores = local and machine.threads is None and not free[0].gpus
    threads = max(1, cores() // (workers * sweep.processes)) if shares_cores else None
    commands = []
    for slot in free:
        variables = {WORKER_SINCE: str(scheduler.since)}
        if slot.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        slot.note = home / f"{uuid4().hex}.pid"
        port = 29600 + int(slot.note.name[:6], 16) % 2000
        commands.append(StudyCommand(worker_words(options, sweep, threads, port), os.getcwd(), variables, str(slot.note)))
    submitter = executor(home, None if local else sweep.slurm.partition or "")
    submitter.update_parameters(name="antidote", **({"timeout_min": LIMIT} if local else slurm_settings(sweep, workers)))
    for slot, job in zip(free, submit(submitter, commands), strict=True):
        slot.job = job


def _stop_workers(slots: list[WorkerSlot], sweep: Sweep, code: int) -> int:
    """Asks the workers of this machine to save and end; those of Slurm go on."""
    busy = [slot for slot in slots if slot.busy]
    if sweep.executor == "slurm":
        names = ", ".join(sorted({str(slot.job.job_id).split("_")[0] for slot in busy}))
        print(f"the array goes on; end it with: scancel {names}", file=sys.stderr, flush=True)
        return code
    for slot in busy:
        with suppress(OSError, ValueError, IndexError):  # not yet begun, or gone
            os.kill(int(slot.note.read_text().split()[0]), signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while any(slot.busy for slot in busy) and time.monotonic() < deadline:
        time.sleep(0.1)
    print("stopped and saved", file=sys.stderr, flush=True)
    return code
