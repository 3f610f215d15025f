"""The processes of a run and what they say to each other. The only door to torch.distributed.

Everything is read from the environment that the launchers of DeepSpeed, torch and Slurm set; without a launcher there
is one process. Gloo on CPU, NCCL on GPUs.
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from data.refusal import Refusal
from objectives.exchange import ALONE, Alone, Group, Ranks, grid


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
    if "RANK" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:  # srun
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        here = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(size)).split("(")[0].split(",")[0]
        return int(os.environ["SLURM_PROCID"]), size, int(os.environ["SLURM_LOCALID"]), int(here)
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
    return int(os.environ.get("RANK", 0)), size, int(os.environ.get("LOCAL_RANK", 0)), local_size


def meeting(size: int) -> tuple[str, int]:
    """(address, port) where ranks meet that no launcher has told: of srun the step's first host; else this machine."""
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


def join(limit: float = 1800.0, threads: int | None = None) -> World:
    """Joins the other processes; each gets `threads`, or its share of this machine's cores. After `limit` seconds without a
    `beat` a rank says for which others it waits, and ends."""
    rank, size, local_rank, local_size = place()
    torch.set_num_threads(threads or max(1, cores() // local_size))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        address, port = meeting(size)
        named = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "MASTER_ADDR": address, "MASTER_PORT": port}
        for name, value in named.items():
            os.environ.setdefault(name, str(value))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=limit + 60))  # the watch speaks before
        if size > 1:
            global _watch
            _watch = Watch(rank, size, limit, dist.distributed_c10d._get_default_store().clone())
    return World(rank, size, local_rank, local_size, device)


class Watch:
    """Tells every rank, through the store that they met at, how far each has come, and ends one that waits too long."""

    def __init__(self, rank: int, size: int, limit: float, store: dist.distributed_c10d.Store) -> None:
        self.rank, self.size, self.limit = rank, size, limit
        self.beats, self.last, self.looks = 0, time.monotonic(), 0
        self.pause = min(1.0, limit / 4)
        self.store = store
        self.done = threading.Event()
        self._publish()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stops watching, before the store goes."""
        self.done.set()
        self.thread.join(10)

    def _publish(self) -> None:
        self.looks += 1
        self.store.set(f"antidote/{self.rank}", f"{self.beats} {self.looks} {socket.gethostname()}")

    def _read(self) -> list[tuple[int, int, str]]:
        """(beats, looks, host) of every rank as last told; -1 for one that never told."""
        told = []
        for rank in range(self.size):
            key = f"antidote/{rank}"
            words = self.store.get(key).decode() if self.store.check([key]) else "-1 -1 an unknown host"
            beats, looks, host = words.split(" ", 2)
            told.append((int(beats), int(looks), host))
        return told

    def _look(self) -> None:
        while not self.done.wait(self.pause):
            try:
                self._publish()
                if time.monotonic() - self.last > self.limit:
                    print(f"error on rank {self.rank}: {self.waiting()}", file=sys.stderr, flush=True)
                    os._exit(2)
            except RuntimeError as error:  # rank 0, which keeps the store, is gone
                if time.monotonic() - self.last > self.limit:
                    print(f"error on rank {self.rank}: rank 0 is gone ({error})", file=sys.stderr, flush=True)
                    os._exit(2)

    def waiting(self) -> str:
        """What this rank waits for, in words."""
        who = self.missing() or "no rank that is behind it: all stand at the same step and answer"
        return (
            f"no progress for {self.limit:,.0f} s; waiting for {who}; look at their machines, or raise "
            "machine.timeout_minutes"
        )

    def missing(self) -> str:
        """The ranks that are behind this one or have stopped looking, as a stopped process or a dead machine does at
        whatever step it stands; empty if none is. Takes four looks."""
        before = self._read()
        for _ in range(4):
            time.sleep(self.pause)
            self._publish()
        return ", ".join(
            f"rank {rank} on {host}"
            for rank, (beats, looks, host) in enumerate(self._read())
            if rank != self.rank and (beats < self.beats or looks == before[rank][1])
        )


_watch: Watch | None = None


def beat() -> None:
    """Says that this rank has come further; called at each step, and in whatever else may take long."""
    if _watch is not None:
        _watch.beats += 1
        _watch.last = time.monotonic()


def agree(facts: dict[str, Any]) -> None:
    """Refusal, naming ranks, if the facts are not the same on all of them."""
    told = gather_objects((socket.gethostname(), facts))
    (_, first), *others = told
    faults = []
    for rank, (host, theirs) in enumerate(others, 1):
        for name in first:
            if theirs.get(name) != first[name]:
                faults.append(
                    f"rank {rank} on {host} has {name} {theirs.get(name)}, rank 0 on {told[0][0]} has {first[name]}"
                )
    if faults:
        raise Refusal(f"ranks disagree: {'; '.join(faults[:8])}; start all with the same spec and the same installation")


def farewell(error: BaseException) -> str:
    """Which rank went away, as far as this one can tell."""
    try:
        who = _watch.missing() if _watch is not None else ""
    except RuntimeError:  # the store, which rank 0 keeps, went with it
        who = "rank 0"
    return f"lost contact with {who or 'another rank'} ({str(error).splitlines()[0]}); look at its messages and start again"


def lost(error: BaseException) -> bool:
    """Whether an exception says that another rank went away."""
    words = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Broken pipe", "NCCL", "DistBackendError")
    return dist.is_initialized() and any(word in f"{type(error).__name__} {error}" for word in words)


def leave() -> None:
    """Ends the process group, if there is one."""
    global _watch
    if _watch is not None:
        _watch.end()
        _watch = None
    if dist.is_initialized():
        _groups.clear()
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Received:
    """Bytes that this rank has received of others' features and statistics, counted as rings move them."""

    bytes: int = 0
    calls: int = 0


received = Received()


@dataclass(frozen=True)
class Members:
    """Some ranks of a process group: the collectives that objectives/exchange.py asks for, each counted."""

    rank: int
    size: int
    group: Any

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """[size * B, ...]: the [B, ...] of all members in order."""
        part = part.detach().contiguous()
        sent = part.to(torch.uint8) if part.dtype == torch.bool else part
        out = sent.new_empty((self.size * len(sent), *sent.shape[1:]))
        dist.all_gather_into_tensor(out, sent, group=self.group)
        self._count((self.size - 1) * sent.nbytes)
        return out.to(part.dtype)

    def scatter(self, whole: torch.Tensor) -> torch.Tensor:
        """[B, ...]: this rank's part of the members' sum of [size * B, ...]."""
        out = whole.new_empty((len(whole) // self.size, *whole.shape[1:]))
        dist.reduce_scatter_tensor(out, whole.contiguous(), group=self.group)
        self._count((self.size - 1) * out.nbytes)
        return out

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over members."""
        out = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self.group)
        self._count(2 * out.nbytes * (self.size - 1) // self.size)
        return out

    def _count(self, number: int) -> None:
        received.bytes += number
        received.calls += 1


def ranks() -> Ranks:
    """This rank's groups: everyone, its row and its column of the grid. Every rank calls it at the same moment."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    size, rank = dist.get_world_size(), dist.get_rank()
    if size not in _groups:
        rows, columns = grid(size)
        lines = [list(range(i * columns, (i + 1) * columns)) for i in range(rows)]
        piles = [list(range(j, size, columns)) for j in range(columns)]
        line, pile = (_mine(sets, rank) for sets in (lines, piles))
        _groups[size] = Ranks(Members(rank, size, None), line, pile)
    return _groups[size]


_groups: dict[int, Ranks] = {}


def _mine(sets: list[list[int]], rank: int) -> Group:
    """The group of the set that holds this rank; every set's group is made, as torch asks."""
    if len(sets[0]) == 1:
        return Alone()
    made = [dist.new_group(members) if len(sets) > 1 else None for members in sets]
    at = next(i for i, members in enumerate(sets) if rank in members)
    return Members(sets[at].index(rank), len(sets[at]), made[at])


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
    for dtype in dict.fromkeys(t.dtype for t in tensors if t.is_floating_point()):  # in the same order on every rank
        these = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.detach().reshape(-1) for t in these])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(these, torch.split(flat, [t.numel() for t in these]), strict=True):
            tensor.data.copy_(part.view_as(tensor))


LARGE = 1 << 18  # elements above which a tensor travels by itself


def total_(tensors: list[torch.Tensor]) -> None:
    """Replaces each tensor by its sum over ranks: large ones in place, small ones of a dtype together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    large = [
        dist.all_reduce(tensor, async_op=True) for tensor in tensors if tensor.numel() >= LARGE and tensor.is_contiguous()
    ]
    rest = [tensor for tensor in tensors if tensor.numel() < LARGE or not tensor.is_contiguous()]
    for dtype in dict.fromkeys(tensor.dtype for tensor in rest):
        these = [tensor for tensor in rest if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in these])
        dist.all_reduce(flat)
        for tensor, part in zip(these, torch.split(flat, [tensor.numel() for tensor in these]), strict=True):
            tensor.copy_(part.view_as(tensor))
    for work in large:
        work.wait()


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
