"""What the workers of a study ask of Slurm, and whether it would ever start them."""

from typing import Any

from configs.sweep import Sweep
from data.slurm import refuse_unfit

WARNING = 300  # seconds before a job's time is up, when it is asked to save


def slurm_settings(sweep: Sweep, workers: int) -> dict[str, Any]:
    """What submitit asks Slurm for: an array of so many workers, warned before their time is up."""
    cpus = sweep.slurm.cpus * sweep.processes
    return {
        "timeout_min": minutes(sweep), "slurm_array_parallelism": workers,
        "slurm_signal_delay_s": WARNING, "slurm_setup": list(sweep.slurm.setup),
        "slurm_srun_args": [f"--cpus-per-task={cpus}"],  # srun takes sbatch's over no longer, since Slurm 22.05
        "slurm_additional_parameters": slurm_options(sweep),
    }  # fmt: skip


def minutes(sweep: Sweep) -> int:
    """The time limit of a Slurm job."""
    return max(1, int(60 * sweep.slurm.hours))


def slurm_options(sweep: Sweep) -> dict[str, str | int]:
    """sbatch's options of one worker."""
    slurm = sweep.slurm
    asked = {
        "cpus-per-task": slurm.cpus * sweep.processes,
        "gpus-per-node": sweep.processes if slurm.gpus else None,
        "mem": f"{slurm.memory_gb}G" if slurm.memory_gb else None,
        "partition": slurm.partition,
        "account": slurm.account,
    }
    return {name: value for name, value in asked.items() if value is not None}


def refuse_unfit_workers(sweep: Sweep) -> None:
    """UserError where Slurm is missing, does not answer, or would never start a worker of this study."""
    refuse_unfit([f"--time={minutes(sweep)}", *(f"--{name}={value}" for name, value in slurm_options(sweep).items())])
