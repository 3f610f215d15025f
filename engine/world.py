"""The processes of a run and what they say to each other. The only door to torch.distributed.

Everything is read from the environment that the launchers of DeepSpeed, torch and Slurm set; without a launcher there
is one process. Gloo on CPU, NCCL on GPUs.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process's place among all; `local_size` counts the processes on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


def place() -> tuple[int, int, int, int]:
    """(rank, ranks, rank on this machine, ranks on this machine) from the environment; 0, 1, 0, 1 without a launcher."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
    return int(os.environ.get("RANK", 0)), size, int(os.environ.get("LOCAL_RANK", 0)), local_size


def join() -> World:
    """Joins the other processes; each gets its share of this machine's cores."""
    rank, size, local_rank, local_size = place()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local_size))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        free = _free_port() if size == 1 else 29500
        for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank), ("MASTER_PORT", free)):
            os.environ.setdefault(name, str(value))
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return World(rank, size, local_rank, local_size, device)


def leave() -> None:
    """Ends the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Gather(torch.autograd.Function):
    """[B, ...] of each rank to [N, ...] on all; the gradient of a row is summed over ranks and goes to its holder."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad,) = grads
        if grad.device.type == "cuda":
            rows = grad.shape[0] // dist.get_world_size()
            own = torch.empty((rows, *grad.shape[1:]), dtype=grad.dtype, device=grad.device)
            dist.reduce_scatter_tensor(own, grad.contiguous())
            return own
        total = grad.contiguous().clone()
        dist.all_reduce(total)  # gloo has no reduce-scatter of its own
        return total.chunk(dist.get_world_size())[dist.get_rank()].contiguous()


def gather(rows: torch.Tensor) -> torch.Tensor:
    """[N, ...]: the rows [B, ...] of all ranks in rank order, with gradients; the very rows if there is one rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    out: torch.Tensor = _Gather.apply(rows)
    return out


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """[N, ...]: as `gather`, without gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows.detach()
    out = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(out, rows.detach().contiguous())
    return torch.cat(out)


def mean_(tensors: list[torch.Tensor]) -> None:
    """Replaces each floating-point tensor by its mean over ranks, in one collective a dtype."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for dtype in {t.dtype for t in tensors if t.is_floating_point()}:
        these = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.detach().reshape(-1) for t in these])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(these, torch.split(flat, [t.numel() for t in these]), strict=True):
            tensor.data.copy_(part.view_as(tensor))


def totals(numbers: list[int]) -> list[int]:
    """Each number summed over ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return numbers
    out = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(out)
    return [int(n) for n in out]


def gather_objects(value: Any) -> list[Any]:
    """The value of each rank, in rank order: plain values of our own, never from a file or another machine's user."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def barrier() -> None:
    """Returns when every rank has come here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def together(action: Callable[[], Any]) -> Any:
    """What rank 0's action returns, on every rank; an exception on rank 0 is raised on every rank."""
    outcome: tuple[Any, Exception | None] = (None, None)
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = (action(), None)
        except Exception as error:
            outcome = (None, error)
    value, trouble = gather_objects(outcome)[0]
    if trouble is not None:
        raise trouble
    return value
