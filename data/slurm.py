"""Slurm as its own commands tell of it: whether it answers, what it refuses, where our jobs stand. Needs no accounting."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from data.refusal import Missing, UserError

COMMANDS = ("sbatch", "srun", "squeue", "sinfo", "scontrol")
PATIENCE = 60.0  # seconds within which a controller answers
SOON, SELDOM = 2.0, 60.0  # seconds between two looks at the queue: shortly after a job was submitted, and later
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip
ASKED = "hours, cpus, memory_gb, partition, account, and gpus: false on nodes without GPUs"


def call(words: Sequence[str], given: str | None = None) -> tuple[int, str, str]:
    """(exit code, output, what went wrong in one line) of one of Slurm's commands, which reads `given`."""
    try:
        done = subprocess.run(words, input=given or "", capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {PATIENCE:g} seconds"
    except OSError as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, error_line(done.stderr) or f"exit code {done.returncode}"


def error_line(text: str) -> str:
    """The last error that one of Slurm's commands printed, without the command's name; '' if it printed nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "error: " in line or "fatal: " in line]
    return (named or lines or [""])[-1].split("error: ")[-1].split("fatal: ")[-1]


def refuse_unreachable() -> None:
    """UserError where Slurm's commands are missing, or its controller does not answer."""
    for name in COMMANDS:
        if shutil.which(name) is None:
            raise Missing(f"no {name} on the PATH; run this on a machine that has Slurm's sbatch and srun, or without Slurm")
    code, _, wrong = call(["sinfo", "--noheader", "--format=%P"])
    if code:
        raise Missing(
            f"Slurm is installed but can't be reached ({wrong}); run this where sinfo lists partitions, or without Slurm"
        )


def refuse_unfit(options: Sequence[str]) -> None:
    """UserError where Slurm does not answer, or would never start a job that asks for this."""
    refuse_unreachable()
    code, _, wrong = call(["sbatch", "--test-only", *options], "#!/bin/sh\n")
    if code:
        raise refused(wrong)


def refused(wrong: str) -> UserError:
    """What sbatch's refusal of a job means for who asked for it."""
    return UserError(f"Slurm refuses the job ({wrong}); ask for what `sinfo` shows: sweep.slurm has {ASKED}")


class Queue:
    """Where our jobs stand, by squeue. It stands in for submitit's own watcher, which asks sacct and complains of each
    answer that it does not get."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}  # of every job of this user that Slurm still knows
        # when it last asked, when it last had an answer, when the newest job was registered
        self.asked = self.looked = self.submitted = float("-inf")
        self.answers = True
        self.jobs: dict[str, float] = {}  # when each was registered

    def register_job(self, job_id: str) -> None:
        """Notes that a job was submitted now."""
        self.jobs[job_id] = self.submitted = time.monotonic()

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Its state by Slurm's own word; GONE if Slurm has forgotten it, UNKNOWN as long as nobody has looked."""
        if job_id not in self.jobs:
            self.register_job(job_id)
        now = time.monotonic()
        pause = 0.0 if mode == "force" else min(SELDOM, max(SOON, (now - self.submitted) / 2))
        if mode != "cache" and now - self.asked > pause:
            self._look(now)
        return self.states.get(job_id, "GONE" if self.looked > self.jobs[job_id] else "UNKNOWN")

    def get_info(self, job_id: str, mode: str = "standard") -> dict[str, Any]:
        """The same, as submitit asks for it."""
        return {"State": self.get_state(job_id, mode)}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether it will not run again."""
        return self.get_state(job_id, mode) in ENDED

    def _look(self, now: float) -> None:
        """Asks Slurm once. While its controller does not answer, jobs stand where they stood, and that is said once."""
        code, out, wrong = call(
            ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T"]
        )
        if not code:
            self.states = dict(line.strip().split("|", 1) for line in out.splitlines() if "|" in line)
            self.looked = now
        elif self.answers:
            print(f"Slurm does not answer ({wrong}); its jobs go on, asking again", file=sys.stderr, flush=True)
        self.asked, self.answers = time.monotonic(), not code
