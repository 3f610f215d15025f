"""Work over shards, spread over processes of this machine or a Slurm array by submitit.

The unit of work, of retry and of resuming is one shard: what is done is left out, what failed is named at the end, and
the same command does the rest.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.refusal import UserError
from data.slurm import Queue, error_line, refuse_unreachable, refused

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.5  # seconds between looks
REQUEUES = 1000  # times that Slurm's time limit may put a job back into the queue
LIMIT = 7 * 24 * 60  # minutes that a local job may take
T = TypeVar("T")


class JobOptions(NamedTuple):
    """How work is spread."""

    jobs: int = 1
    slurm: str | None = None  # a partition; None: this machine
    hours: int = 12  # time limit of a Slurm job

    @staticmethod
    def arguments(parser: Any) -> None:
        """Adds --jobs, --slurm and --hours to a command line."""
        parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, or jobs of the Slurm array")
        parser.add_argument("--slurm", metavar="PARTITION", help="run as a Slurm array in this partition")
        parser.add_argument("--hours", type=int, default=12, help="time limit of a Slurm job")


def run_jobs(
    work: Callable[[T], None],
    items: Sequence[T],
    done: Callable[[T], bool],
    how: JobOptions,
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Does `work` on each item that is not `done`; what went wrong with those that are still not, a line each.

    `work` is a function of a module, called in other processes; `folder` takes submitit's files.
    """
    left = [item for item in items if not done(item)]
    jobs = max(1, min(how.jobs, len(left)))
    if jobs == 1 and how.slurm is None:
        failed = []
        for number, item in enumerate(left):
            failed += run_each(work, [item])
            progress(len(items) - len(left) + number + 1, len(items))
        return failed
    submitter = executor(folder, how.slurm)
    submitter.update_parameters(name="antidote", timeout_min=60 * how.hours if how.slurm else LIMIT, cpus_per_task=1)
    if how.slurm:
        submitter.update_parameters(slurm_partition=how.slurm)
    running = submit(submitter, [partial(run_each, work, left[i::jobs]) for i in range(jobs)])
    waiting = list(left)
    while not all(job.done() for job in running):
        time.sleep(POLL)
        waiting = [item for item in waiting if not done(item)]
        progress(len(items) - len(waiting), len(items))
    failed = []
    for job in running:
        try:
            failed += job.result()
        except Exception as error:  # killed, out of memory or time
            failed.append(f"job {job.job_id}: {str(error).strip().splitlines()[-1]} (log: {job.paths.stderr})")
    return failed


def executor(folder: Path, slurm: str | None) -> Any:
    """submitit's executor of this machine, or of Slurm if a partition ("": the default one) is given; UserError without
    it."""
    import submitit
    from submitit.slurm.slurm import SlurmJob

    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *path])
    if slurm is None:
        return submitit.AutoExecutor(folder=folder, cluster="local")
    refuse_unreachable()
    if not isinstance(SlurmJob.watcher, Queue):
        SlurmJob.watcher = Queue()
    return submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)


def submit(submitter: Any, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """submitit's jobs of these calls, of Slurm one array; UserError if Slurm refuses them."""
    from submitit.core.utils import FailedJobError

    try:
        return list(submitter.submit_array(calls))
    except FailedJobError as error:
        raise refused(error_line(str(error))) from None


def run_each(work: Callable[[T], None], items: Sequence[T]) -> list[str]:
    """Does the work on each item; what went wrong, a line each."""
    failed = []
    for item in items:
        try:
            work(item)
        except Exception as error:
            failed.append(str(error) if isinstance(error, UserError) else f"{item}: {type(error).__name__}: {error}")
    return failed
