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
from pathlib import Path
from typing import Any

from configs.sweep import Sweep
from data.jobs import LIMIT, executor
from engine.agenda import Agenda
from engine.status import Surveyor, table

SCRIPT = Path(__file__).resolve().with_name("run.py")
HELPS = "ANTIDOTE_HELPS"  # set in a job: who started it writes study.json and the report
POLL = 1.0  # seconds between looks
LINE = 15.0  # seconds between lines where there is no terminal
GRACE = 600.0  # seconds that a job may take to save when it is asked to stop
RESTARTS = 20  # of jobs that died, in one launch
MEMORY = 2.5 * 2**30  # bytes of a process on CPU: imports, towers, evaluation pictures
SHOWN = 30  # rows of the live table


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
        return int(self.process.wait())

    def checkpoint(self) -> Any:
        """Called by submitit before Slurm's time limit and on preemption: the run saves, and the job is put back."""
        import submitit

        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(GRACE)
        return submitit.helpers.DelayedSubmission(Job(self.words, self.folder, self.more, self.note))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process": None}


def carriers(sweep: Sweep, left: int) -> tuple[int, list[str]]:
    """(how many jobs go on at once, the GPUs of this machine): one a GPU or group of them, or as many as CPU and memory
    carry."""
    import psutil
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(torch.cuda.device_count())] if given is None else [g for g in given.split(",") if g]
    if not torch.cuda.is_available():
        gpus = []
    if sweep.jobs != "auto":
        most = int(sweep.jobs)
    elif sweep.executor == "slurm":
        most = left
    elif gpus:
        most = len(gpus) // sweep.processes
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = min(cores // sweep.processes, int(psutil.virtual_memory().available / (MEMORY * sweep.processes)))
    return max(1, min(most, left)), gpus


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


def coordinate(agenda: Agenda, options: Namespace, asked: Callable[[], int]) -> int:
    """Starts jobs until every run has ended or failed, and shows how far they are; 0, or the exit code of a stop that was
    asked for."""
    spec, folder = agenda.loaded.spec, agenda.folder
    sweep = spec.sweep
    agenda.since = _clock(folder)
    running: list[tuple[Any, Path]] = []
    started = restarts = 0
    surveyor, screen = Surveyor(folder), Screen()
    try:
        while True:
            counts = agenda.count()
            if sign := asked():
                return _stop(running, sweep, 128 + sign)
            running = [(job, note) for job, note in running if not job.done()]
            jobs, gpus = carriers(sweep, max(1, counts["open"]))
            if not running:
                if not counts["open"] and not agenda.extended():
                    return 0
                restarts += started > 0
                if restarts > RESTARTS:
                    print(
                        f"error: jobs ended {restarts} times without ending the runs; look at {folder / '.jobs'}",
                        file=sys.stderr,
                    )
                    return 2
            free = jobs - len(running)
            if free > 0 and counts["open"] > len(running):
                running += _start(sweep, options, folder, started, free, jobs, gpus)
                started += free
            screen.show(surveyor, max(1, len(running)))
            time.sleep(POLL)
            agenda.renew()
    finally:
        screen.end()


def _clock(folder: Path) -> float:
    from engine.claim import now

    return now(folder)


def _start(
    sweep: Sweep, options: Namespace, folder: Path, started: int, count: int, jobs: int, gpus: list[str]
) -> list[tuple[Any, Path]]:
    """Starts `count` further jobs; those of Slurm as one array."""
    home = folder / ".jobs"
    home.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = sweep.executor == "local"
    threads = None if gpus or not local else max(1, cores // (jobs * sweep.processes))
    work, notes = [], []
    for number in range(started, started + count):
        more = {HELPS: "1"}
        if local and gpus:
            first = number % max(1, len(gpus) // sweep.processes) * sweep.processes
            more["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + sweep.processes])
        note = home / f"{os.getpid()}-{number}.pid"
        words = words_of(options, sweep, threads, 29600 + (os.getpid() + 7 * number) % 2000)
        work.append(Job(words, os.getcwd(), more, str(note)))
        notes.append(note)
    one = executor(home, None if local else sweep.slurm.partition or "")
    if local:
        one.update_parameters(name="antidote", timeout_min=LIMIT)
        return [(one.submit(job), note) for job, note in zip(work, notes, strict=True)]
    asks = sweep.slurm
    settings: dict[str, Any] = {
        "name": "antidote", "timeout_min": int(60 * asks.hours), "cpus_per_task": asks.cpus * sweep.processes,
        "slurm_array_parallelism": jobs, "slurm_signal_delay_s": 300, "slurm_setup": list(asks.setup),
    }  # fmt: skip
    if asks.gpus:
        settings["gpus_per_node"] = sweep.processes
    if asks.memory_gb:
        settings["mem_gb"] = asks.memory_gb
    for name in ("partition", "account"):
        if getattr(asks, name):
            settings[f"slurm_{name}"] = getattr(asks, name)
    one.update_parameters(**settings)
    return list(zip(one.map_array(_call, work), notes, strict=True))


def _call(job: Job) -> int:
    return job()


def _stop(running: list[tuple[Any, Path]], sweep: Sweep, code: int) -> int:
    """Asks the jobs of this machine to save and end; those of Slurm go on."""
    if sweep.executor == "slurm":
        names = ", ".join(sorted({str(job.job_id).split("_")[0] for job, _ in running}))
        print(f"the array goes on; end it with: scancel {names}", file=sys.stderr, flush=True)
        return code
    for _, note in running:
        if note.is_file():
            try:
                os.kill(int(note.read_text()), signal.SIGTERM)
            except (ProcessLookupError, ValueError):
                continue
    deadline = time.monotonic() + GRACE
    while any(not job.done() for job, _ in running) and time.monotonic() < deadline:
        time.sleep(0.1)
    print("stopped and saved", file=sys.stderr, flush=True)
    return code


class Screen:
    """The study on the terminal: a live table, or a line now and then where there is none."""

    def __init__(self) -> None:
        self.live: Any = None
        self.said = -LINE
        self.words = ""

    def show(self, surveyor: Surveyor, jobs: int) -> None:
        """Shows the study as it is now."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            if self.live is None:
                self.live = Live(console=Console(stderr=True), auto_refresh=False)
                self.live.start()
            self.live.update(table(surveyor.survey(), jobs, SHOWN), refresh=True)
            return
        if time.monotonic() - self.said >= LINE:
            words = surveyor.survey().line(jobs)
            self.said = time.monotonic()
            if words != self.words:
                self.words = words
                print(words, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the last table on the terminal."""
        if self.live is not None:
            self.live.stop()
