"""The processes of a run: which one this is, how they meet and part. This folder is the only door to torch.distributed.

Everything is read from the environment that the launchers of DeepSpeed, torch and Slurm set; without a launcher there
is one process. Gloo on CPU, NCCL on GPUs.
"""

import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from data.refusal import UserError
from engine.distributed.collectives import forget_process_groups, gather_objects
from engine.distributed.rank import rank_from_env
from engine.distributed.watchdog import missing_ranks, start_watchdog, stop_watchdog


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


def rendezvous(size: int) -> tuple[str, int]:
    """(address, port) where ranks meet if no launcher says so: under srun on the step's first host; else on this machine."""
    if size > 1 and "SLURM_STEP_NODELIST" in os.environ:
        # node[03-07,11],other -> node03
        first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", os.environ["SLURM_STEP_NODELIST"])
        assert first is not None
        port = 20_000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20_000
        return first.group(1) + (first.group(2) or ""), port
    return "127.0.0.1", _free_port() if size == 1 else 29500


def cores() -> int:
    """Those of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_device(local_rank: int) -> torch.device:
    """The GPU of this process, or the CPU. A launcher may show each process its own GPU alone, as Slurm does under
    --gpus-per-task=1: then all of them are number 0."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _identity(device: torch.device) -> str:
    """What tells this GPU, or this part of one, from all others of the machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    part = visible.split(",")[device.index or 0] if visible.startswith("MIG-") else ""
    return f"{torch.cuda.get_device_properties(device).uuid} {part}".strip()


def refuse_shared_devices(places: Sequence[tuple[str, str]]) -> None:
    """UserError if two ranks are on one GPU; (machine, what tells its GPU from others) of each rank."""
    seen: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(places):
        other = seen.setdefault(place, rank)
        if other != rank:
            machine, device = place
            processes = sum(host == machine for host, _ in places)
            gpus = len({one for one in places if one[0] == machine})
            raise UserError(
                f"ranks {other} and {rank} are both on GPU {device} of {machine}, where {processes} processes see {gpus} "
                f"GPU{'s' * (gpus > 1)}; start one process a GPU, for example with deepspeed --num_gpus {gpus}"
            )


def refuse_taken_port(port: int, rank: int, local_rank: int) -> None:
    """UserError if the port where rank 0 is to wait for the others is another launch's: on every rank of its machine, or
    the others would join that launch. Under torchrun its own process waits there."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or rank != local_rank:
        return
    fault = _cannot_listen(port) if rank == 0 else _foreign_listener(port)
    if fault:
        raise UserError(
            f"port {port} of {socket.gethostname()}, where the processes are to meet, can't be had ({fault}); if a study is "
            f"at work here, give this one its own: deepspeed --master_port {_free_port()}, or MASTER_PORT in the environment"
        )


def _cannot_listen(port: int) -> str:
    """Why this process can't listen at a port; '' if it can."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def _foreign_listener(port: int) -> str:
    """Which process listens at a port, if it was not started by whoever started this one; '' if none does."""
    for again in (True, True, False):
        listeners = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        if None not in listeners or not again:
            break
        time.sleep(0.2)  # psutil lists files before sockets: rank 0 may have opened its own in between
    for pid in listeners:
        try:
            if pid is not None and psutil.Process(pid).ppid() == os.getppid():
                continue
        except psutil.NoSuchProcess:
            continue
        return f"process {pid or '?'} listens there"
    return ""


def init_distributed(limit: float = 1800.0, threads: int | None = None) -> World:
    """Joins the other processes; each gets `threads`, or its share of this machine's cores. After `limit` seconds without a
    heartbeat a rank says for which others it waits, and ends."""
    rank, size, local_rank, local_size = rank_from_env()
    torch.set_num_threads(threads or max(1, cores() // local_size))
    device = own_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        address, port = rendezvous(size)
        variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "MASTER_ADDR": address, "MASTER_PORT": port}
        for name, value in variables.items():
            os.environ.setdefault(name, str(value))
        refuse_taken_port(int(os.environ["MASTER_PORT"]), rank, local_rank)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=limit + 60))  # the watchdog speaks before
        except RuntimeError as error:
            raise _not_met(rank, size, limit, error) from error
        if size > 1:
            start_watchdog(rank, size, limit, dist.distributed_c10d._get_default_store().clone())
    if device.type == "cuda":
        refuse_shared_devices(gather_objects((socket.gethostname(), _identity(device))))
    return World(rank, size, local_rank, local_size, device)


def _not_met(rank: int, size: int, limit: float, error: RuntimeError) -> UserError:
    """What kept this rank from meeting the others."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return UserError(
        f"rank {rank} has not met the other {size - 1} at {address}, port {port}, within {limit:,.0f} s "
        f"({str(error).splitlines()[0]}); start them all, and let their machines reach each other",
        alone=True,
        again=True,
    )


def lost_rank(error: BaseException) -> UserError:
    """Which rank went away, as far as this one can tell."""
    who, why = missing_ranks() or "another rank", str(error).splitlines()[0].split(". ")[0]
    words = f"lost contact with {who} ({why}); look at its messages and start again"
    return UserError(words, alone=True, again=True)


def is_rank_failure(error: BaseException) -> bool:
    """Whether an exception says that another rank went away; gloo and NCCL say so only by the text of a RuntimeError."""
    signs = (
        "Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe", "NCCL", "gloo/",
        "Socket closed", "DistBackendError", "DistNetworkError", "DistStoreError",
    )  # fmt: skip
    return (
        isinstance(error, RuntimeError)
        and dist.is_initialized()
        and dist.get_world_size() > 1
        and any(sign in f"{type(error).__name__} {error}" for sign in signs)
    )


def destroy_distributed() -> None:
    """Ends the process group, if there is one."""
    stop_watchdog()
    if dist.is_initialized():
        forget_process_groups()
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
