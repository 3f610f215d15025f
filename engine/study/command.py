"""A worker's command, as submitit carries it out: in a process of its own, for as long as the worker lives, which needs no
torch and so takes 50 MB instead of 570.
"""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.slurm import call
from engine.study.slurm import WARNING

SAVES = WARNING - 60.0  # seconds that its run may take to save, so that a Slurm job is put back into the queue in time
OF_THE_LAUNCHER = (  # what a worker must not take over from the process that starts it
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


class StudyCommand:
    """One process, or DeepSpeed's launcher with several, as submitit pickles and calls it: plain values only.

    `note` is a file for the process's number and, when it has ended, its exit code.
    """

    def __init__(self, words: list[str], folder: str, variables: dict[str, str], note: str) -> None:
        self.words, self.folder, self.variables, self.note = words, folder, variables, note
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """The command's exit code."""
        inherited = {name: value for name, value in os.environ.items() if name not in OF_THE_LAUNCHER}
        if cuda := os.environ.get("CUDA_VISIBLE_DEVICES"):
            inherited["CUDA_VISIBLE_DEVICES"] = cuda  # Slurm's own choice, unless `variables` has ours
        self.process = subprocess.Popen(
            self.words, cwd=self.folder, env={**inherited, **self.variables}, preexec_fn=_ignore_warning
        )
        Path(self.note).write_text(str(self.process.pid))
        code = self.process.wait()
        if code == 128 + signal.SIGTERM and _goes_on():  # Slurm preempts it, or somebody asked it to save and go on later
            signal.raise_signal(signal.SIGUSR2)
        Path(self.note).write_text(f"{self.process.pid} {code}")
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before Slurm's time limit: the run saves, and the job is put back. One that does not save in
        time goes on from an earlier checkpoint."""
        import psutil
        import submitit

        with suppress(psutil.NoSuchProcess, AttributeError):  # it has ended, or not begun
            # not Popen.wait: this is called by a signal, maybe in the midst of it, and its lock is held
            child = psutil.Process(self.process.pid)  # type: ignore[union-attr]
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(SAVES)
            except psutil.TimeoutExpired:
                child.kill()
        return submitit.helpers.DelayedSubmission(StudyCommand(self.words, self.folder, self.variables, self.note))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process": None}


def _ignore_warning() -> None:
    """In a worker's process: Slurm's signal goes to all of a job's processes, and only submitit's own answers it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _goes_on() -> bool:
    """Whether this is a Slurm job that nobody has cancelled."""
    if "SLURM_JOB_ID" not in os.environ:
        return False
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:  # the first number of an array's task may be the whole array's
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    code, state, _ = call(["squeue", "--noheader", f"--jobs={job}", "--format=%T"])
    return not code and state.strip() == "RUNNING"
