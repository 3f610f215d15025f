"""Which of how many processes this is, as its launcher says; needs no torch."""

import os


def rank_from_env() -> tuple[int, int, int, int]:
    """(rank, ranks, rank on this machine, ranks on this machine) from the environment; 0, 1, 0, 1 without a launcher."""
    if "RANK" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:  # srun
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        on_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(size)).split("(")[0].split(",")[0]  # 8(x2) -> 8
        return int(os.environ["SLURM_PROCID"]), size, int(os.environ["SLURM_LOCALID"]), int(on_node)
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
    return int(os.environ.get("RANK", 0)), size, int(os.environ.get("LOCAL_RANK", 0)), local_size
