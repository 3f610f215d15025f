"""The machine that a dry run assumes: how many processes, which GPU each has."""

from typing import NamedTuple

import torch

from data.refusal import UserError
from engine.distributed.rank import rank_from_env
from engine.distributed.world import World

MIB, GIB = 1 << 20, 1 << 30
RESERVED = 1536 * MIB
WITHOUT_BF16 = ("T4", "V100")
GPUS = {  # bytes of memory as their drivers tell them
    "A10-24GB": 23_028 * MIB,
    "A100-40GB": 40_536 * MIB,
    "A100-80GB": 81_251 * MIB,
    "B200-180GB": 183_359 * MIB,
    "H100-80GB": 81_559 * MIB,
    "H200-141GB": 143_771 * MIB,
    "L4-24GB": 23_034 * MIB,
    "L40S-48GB": 46_068 * MIB,
    "RTX3090-24GB": 24_268 * MIB,
    "RTX4090-24GB": 24_564 * MIB,
    "T4-16GB": 15_360 * MIB,
    "V100-16GB": 16_160 * MIB,
    "V100-32GB": 32_510 * MIB,
}


class Gpu(NamedTuple):
    """A kind of GPU."""

    name: str
    memory: int  # bytes
    bf16: bool = True  # whether `precision: auto` computes in it

    @property
    def usable(self) -> int:
        """Bytes for a run: less what CUDA, NCCL and cuDNN take, and what fragments."""
        return int(0.95 * self.memory) - RESERVED


class Assumed(NamedTuple):
    """What a dry run assumes."""

    processes: int
    gpu: Gpu | None  # None: CPU
    dollars: float | None = None  # of one GPU-hour

    @property
    def world(self) -> World:
        """The first of the processes."""
        device = torch.device("cpu" if self.gpu is None else "cuda")
        return World(0, self.processes, 0, self.processes, device)


def assumed(processes: int | None, gpu: str | None, dollars: float | None) -> Assumed:
    """What the options say, and else this machine: its launcher's processes, its GPU; UserError if the GPU is unknown."""
    if gpu is not None and gpu not in GPUS:
        raise UserError(f"--gpu is '{gpu}', whose memory is not known; known: {', '.join(GPUS)}")
    here = None
    if gpu is not None:
        here = Gpu(gpu, GPUS[gpu], not gpu.startswith(WITHOUT_BF16))
    elif torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        here = Gpu(properties.name, properties.total_memory, torch.cuda.is_bf16_supported())
    return Assumed(processes or rank_from_env()[1], here, dollars)
