"""The command that a study was started with, for whoever goes on with it."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GIVEN = "ANTIDOTE_COMMAND"  # set by a job's script that knows how it was submitted


def given_command(script: Path, args: Sequence[str]) -> str:
    """As a shell takes it: what a job's script says; the launcher with its options, as it was started on this machine; or,
    where it was started on another, one like it."""
    if command := os.environ.get(GIVEN):
        return command
    words = [word for word in args if not word.startswith("--local_rank")]
    return started_by(script) or f"{_launcher()} {shlex.join([os.path.relpath(script), *words])}"


def started_by(script: Path) -> str:
    """The command line of the launcher that this process descends from; '' if there is none on this machine."""
    import psutil

    found: list[str] = []
    for parent in psutil.Process().parents():
        with suppress(psutil.Error):  # another user's
            words, folder = parent.cmdline(), parent.cwd()
            if "deepspeed.launcher.launch" not in words and any(_names(folder, word, script) for word in words):
                found = words
    if found and Path(found[0]).name.startswith("python"):
        found = [Path(found[1]).name, *found[2:]] if found[1:2] and found[1].startswith("/") else ["python", *found[1:]]
    return shlex.join(found)


def _names(folder: str, word: str, script: Path) -> bool:
    """Whether a word of a command given in a folder names the script."""
    try:
        return word.endswith(script.name) and (Path(folder) / word).samefile(script)
    except OSError:
        return False


def _launcher() -> str:
    """That of a launcher on another machine, or of none, as far as its variables tell."""
    of = os.environ.get
    size = int(of("WORLD_SIZE", 1))
    here = int(of("LOCAL_SIZE", of("LOCAL_WORLD_SIZE", size)))
    if "SLURM_PROCID" in os.environ and (tasks := of("SLURM_STEP_NUM_TASKS")):
        return f"srun --ntasks {tasks} python"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nnodes {size // here} --nproc-per-node {here}"
    if size > here:
        return "deepspeed --hostfile HOSTFILE"
    if size > 1:
        return f"deepspeed --num_gpus {size}"
    return "deepspeed" if "CROSS_RANK" in os.environ else "python"
