"""Several runs of a study at once, each in processes of its own: on this machine, or as a Slurm array, by submitit.

A job is the study's own command, which joins the study: it takes one run after another until none is left. So there is
nothing to hand out, and jobs may be added, killed or put back into the queue at any time.
"""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from configs.sweep import Sweep
from data.jobs import LIMIT, executor
from engine.distributed.world import cores
from engine.study import lock as claim
from engine.study.live_view import Screen
from engine.study.scheduler import Scheduler
from engine.study.status import Surveyor
from engine.study.study import HELPS

SCRIPT = Path(__file__).resolve().parents[1] / "run.py"
POLL = 1.0  # seconds between looks
GRACE = 600.0  # seconds that a job may take to save when it is asked to stop
DEATHS = 20  # of jobs, in one launch, after which something must be wrong with the machine
MEMORY = 2.5 * 2**30  # bytes of a process on CPU: imports, towers, evaluation pictures


class Job:
    """One process, or DeepSpeed's launcher with several, as submitit runs it: plain words, no objects of ours."""

    def __init__(self, words: list[str], folder: str, more: dict[str, str], note: str) -> None:
        self.words, self.folder, self.more, self.note = words, folder, more, note
        self.process: Any = None

    def __call__(self) -> int:
        """The command's exit code."""
        drop = (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
            "SLURM_STEP_NUM_TASKS",
            "CUDA_VISIBLE_DEVICES",
        )
        cuda = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        kept = {name: value for name, value in os.environ.items() if name not in drop}
        if cuda and "CUDA_VISIBLE_DEVICES" not in self.more:
            kept["CUDA_VISIBLE_DEVICES"] = cuda  # Slurm's own choice
        self.process = subprocess.Popen(self.words, cwd=self.folder, env={**kept, **self.more})
        Path(self.note).write_text(str(self.process.pid))
        code = int(self.process.wait())
        Path(self.note).write_text(f"{self.process.pid} {code}")
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before Slurm's time limit and on preemption: the run saves, and the job is put back."""
        import psutil
        import submitit

        with suppress(psutil.NoSuchProcess, AttributeError):  # it has ended, or not begun
            # not Popen.wait: this is called by a signal, maybe in the midst of it, and its lock is held
            child = psutil.Process(self.process.pid)
            child.send_signal(signal.SIGTERM)
            child.wait(GRACE)
        return submitit.helpers.DelayedSubmission(Job(self.words, self.folder, self.more, self.note))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process": None}


@dataclass
class Slot:
    """Room for one job: its GPUs on this machine, and the job that is in it."""

    gpus: list[str]
    job: Any = None  # submitit's
    note: Path = Path()

    @property
    def busy(self) -> bool:
        """Whether its job goes on."""
        return self.job is not None and not self.job.done()

    def refusal(self) -> str:
        """The last error that its job told, if it ended with code 2; else ''."""
        with suppress(OSError):
            if self.note.read_text().split()[1:] == ["2"]:
                lines = Path(self.job.paths.stderr).read_text("utf-8", "replace").splitlines()
                return next(
                    (line for line in reversed(lines) if line.startswith("error")), f"error: see {self.job.paths.stderr}"
                )
        return ""


def slots(sweep: Sweep, runs: int) -> list[Slot]:
    """Room for as many jobs as go on at once: one a GPU or group of them, or as many as CPU and memory carry."""
    import psutil
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    gpus = [g for g in given.split(",") if g] if given is not None and count else [str(i) for i in range(count)]
    each, local = sweep.processes, sweep.executor == "local"
    if sweep.jobs != "auto":
        most = int(sweep.jobs)
    elif not local:
        most = runs
    elif gpus:
        most = len(gpus) // each
    else:
        most = min(cores() // each, int(psutil.virtual_memory().available / (MEMORY * each)))
    room = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)] if local else []
    return [Slot(room[i % len(room)] if room else []) for i in range(max(1, min(most, runs)))]


def words_of(options: Namespace, sweep: Sweep, threads: int | None, port: int) -> list[str]:
    """The command of a job."""
    words = ["--spec", options.spec, *(word for one in options.set for word in ("--set", one))]
    if options.stage:
        words += ["--stage", options.stage]
    words += ["--set", "sweep.executor=here"]
    if threads is not None:
        words += ["--set", f"machine.threads={threads}"]
    if sweep.processes == 1:
        return [sys.executable, str(SCRIPT), *words]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", str(sweep.processes), "--master_port", str(port), str(SCRIPT), *words]


def coordinate(agenda: Scheduler, options: Namespace, asked: Callable[[], int]) -> int:
    """Starts jobs until every run has ended or failed, and shows how far they are; 0, or the exit code of a stop that was
    asked for, or 2 if jobs die again and again."""
    sweep, folder = agenda.loaded.spec.sweep, agenda.folder
    agenda.since = claim.now(folder)
    room = slots(sweep, max(1, agenda.count()["open"]))
    surveyor, screen, deaths = Surveyor(folder), Screen(), 0
    try:
        while True:
            if sign := asked():
                return _stop([slot for slot in room if slot.busy], sweep, 128 + sign)
            left = agenda.count()["open"]
            if not left and not any(slot.busy for slot in room):
                if not agenda.extended():
                    return 0
                continue
            free = [slot for slot in room if not slot.busy]
            for slot in free:
                if slot.job is not None and left:
                    deaths += 1
                    if refusal := slot.refusal():  # not of one run, but of all: a full disk, say
                        print(refusal, file=sys.stderr, flush=True)
                        return _stop([slot for slot in room if slot.busy], sweep, 2)
                slot.job = None
            if deaths > DEATHS:
                words = f"jobs ended {deaths} times before the runs did; look at the logs in {folder / '.jobs'}"
                print(f"error: {words}", file=sys.stderr)
                return 2
            if wanted := free[: max(0, left - (len(room) - len(free)))]:
                _start(wanted, agenda, options, len(room))
            screen.show(surveyor, len(room))
            time.sleep(POLL)
            agenda.renew()
    finally:
        screen.end()


def _start(free: list[Slot], agenda: Scheduler, options: Namespace, jobs: int) -> None:
    """Puts a job into each of these slots; those of Slurm as one array."""
    sweep, machine = agenda.loaded.spec.sweep, agenda.loaded.spec.machine
    home = agenda.folder / ".jobs"
    home.mkdir(parents=True, exist_ok=True)
    local = sweep.executor == "local"
    shared = local and machine.threads is None and not free[0].gpus
    threads = max(1, cores() // (jobs * sweep.processes)) if shared else None
    work = []
    for slot in free:
        more = {HELPS: str(agenda.since)}
        if slot.gpus:
            more["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        slot.note = home / f"{uuid4().hex}.pid"
        port = 29600 + int(slot.note.name[:6], 16) % 2000
        work.append(Job(words_of(options, sweep, threads, port), os.getcwd(), more, str(slot.note)))
    one = executor(home, None if local else sweep.slurm.partition or "")
    one.update_parameters(name="antidote", **({"timeout_min": LIMIT} if local else slurm_settings(sweep, jobs)))
    with one.batch():  # of Slurm one array
        started = [one.submit(job) for job in work]
    for slot, job in zip(free, started, strict=True):
        slot.job = job


def slurm_settings(sweep: Sweep, jobs: int) -> dict[str, Any]:
    """What submitit asks Slurm for: an array of so many jobs, warned five minutes before their time is up."""
    asks = sweep.slurm
    settings: dict[str, Any] = {
        "timeout_min": int(60 * asks.hours), "cpus_per_task": asks.cpus * sweep.processes,
        "slurm_array_parallelism": jobs, "slurm_signal_delay_s": 300, "slurm_setup": list(asks.setup),
    }  # fmt: skip
    if asks.gpus:
        settings["gpus_per_node"] = sweep.processes
    if asks.memory_gb:
        settings["mem_gb"] = asks.memory_gb
    return settings | {f"slurm_{name}": value for name in ("partition", "account") if (value := getattr(asks, name))}


def _stop(busy: list[Slot], sweep: Sweep, code: int) -> int:
    """Asks the jobs of this machine to save and end; those of Slurm go on."""
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
