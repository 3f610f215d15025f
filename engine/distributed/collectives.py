"""What ranks exchange: gathers and sums of tensors, plain values, what rank 0 alone does. All work for a single process."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from data.refusal import UserError
from objectives.exchange import SINGLE_RANK, Group, Ranks, SingleRank, grid


@dataclass
class Received:
    """Bytes that this rank has received of others' features and statistics, counted as rings move them."""

    bytes: int = 0
    calls: int = 0


T = TypeVar("T")
received = Received()


@dataclass(frozen=True)
class ProcessGroup:
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

    def reduce_scatter(self, whole: torch.Tensor) -> torch.Tensor:
        """[B, ...]: this rank's part of the members' sum of [size * B, ...]."""
        out = whole.new_empty((len(whole) // self.size, *whole.shape[1:]))
        dist.reduce_scatter_tensor(out, whole.contiguous(), group=self.group)
        self._count((self.size - 1) * out.nbytes)
        return out

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over members."""
        out = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self.group)
        self._count(2 * out.nbytes * (self.size - 1) // self.size)
        return out

    def _count(self, number: int) -> None:
        received.bytes += number
        received.calls += 1


def process_groups() -> Ranks:
    """This rank's groups: everyone, its row and its column of the grid. Every rank calls it at the same moment."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return SINGLE_RANK
    return _make_groups(dist.get_rank(), dist.get_world_size())


@cache
def _make_groups(rank: int, size: int) -> Ranks:
    rows, columns = grid(size)
    row_members = [list(range(i * columns, (i + 1) * columns)) for i in range(rows)]
    column_members = [list(range(j, size, columns)) for j in range(columns)]
    return Ranks(ProcessGroup(rank, size, None), _own_group(row_members, rank), _own_group(column_members, rank))


def _own_group(parts: list[list[int]], rank: int) -> Group:
    """The group of that part of the ranks which holds this one; every part's group is made, as torch asks."""
    if len(parts[0]) == 1:
        return SingleRank()
    groups = [dist.new_group(members) if len(parts) > 1 else None for members in parts]
    own = next(i for i, members in enumerate(parts) if rank in members)
    return ProcessGroup(parts[own].index(rank), len(parts[own]), groups[own])


def consecutive_ranks(size: int) -> Group:
    """This rank's group of so many consecutive ranks, one of those that divide all. Every rank calls it at the same
    moment."""
    if size == 1:
        return SingleRank()
    return _make_consecutive(dist.get_rank(), dist.get_world_size(), size)


@cache
def _make_consecutive(rank: int, ranks: int, size: int) -> Group:
    return _own_group([list(range(first, first + size)) for first in range(0, ranks, size)], rank)


def forget_process_groups() -> None:
    """Before the process group that they belong to is destroyed."""
    _make_groups.cache_clear()
    _make_consecutive.cache_clear()


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """[N, ...]: as `gather`, without gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows.detach()
    out = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(out, rows.detach().contiguous())
    return torch.cat(out)


def all_reduce_mean_(tensors: list[torch.Tensor]) -> None:
    """Replaces each floating-point tensor by its mean over ranks, in one collective a dtype."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors if t.is_floating_point()):  # in the same order on every rank
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.detach().reshape(-1) for t in alike])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(alike, torch.split(flat, [t.numel() for t in alike]), strict=True):
            tensor.data.copy_(part.view_as(tensor))


LARGE = 1 << 18  # elements above which a tensor travels by itself


def all_reduce_sum_(tensors: list[torch.Tensor]) -> None:
    """Replaces each tensor by its sum over ranks: large ones in place, small ones of a dtype together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    pending = [
        dist.all_reduce(tensor, async_op=True) for tensor in tensors if tensor.numel() >= LARGE and tensor.is_contiguous()
    ]
    rest = [tensor for tensor in tensors if tensor.numel() < LARGE or not tensor.is_contiguous()]
    for dtype in dict.fromkeys(tensor.dtype for tensor in rest):
        alike = [tensor for tensor in rest if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        for tensor, part in zip(alike, torch.split(flat, [tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))
    for work in pending:
        work.wait()


def reduce_sum_(tensor: torch.Tensor, rank: int) -> None:
    """Replaces the tensor on one rank by its sum over ranks; what the others have in theirs afterwards is undefined."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.reduce(tensor, rank)


def all_reduce_sum(numbers: list[int]) -> list[int]:
    """Each number summed over ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return numbers
    out = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(out)
    return [int(n) for n in out]


def gather_objects(value: T) -> list[T]:
    """The value of each rank, in rank order: plain values of our own, never from a file or another machine's user."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def first_refusal(own: UserError | None) -> UserError | None:
    """What the first rank refuses that refuses anything; every rank gives what it refuses itself."""
    return next((refusal for refusal in gather_objects(own) if refusal is not None), None)


def barrier() -> None:
    """Returns when every rank has come here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _travels(error: Exception) -> bool:
    """Whether other ranks can be told an exception as it is; not all of a library's can."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return alone or isinstance(error, UserError) or type(error).__module__ == "builtins"


def on_rank_0(action: Callable[[], T]) -> T:
    """What rank 0's action returns, on every rank; an exception on rank 0 is raised on every rank."""
    outcome: tuple[T | None, Exception | None] = (None, None)
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = (action(), None)
        except Exception as error:
            outcome = (None, error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}"))
    value, error_of_rank_0 = gather_objects(outcome)[0]
    if error_of_rank_0 is not None:
        raise error_of_rank_0
    return cast(T, value)


def assert_equal_on_ranks(facts: Mapping[str, object]) -> None:
    """UserError, naming ranks, if the facts are not the same on all of them."""
    (first_host, first), *others = gather_objects((socket.gethostname(), facts))
    differences = [
        f"rank {rank} on {host} has {name} {theirs.get(name)}, rank 0 on {first_host} has {value}"
        for rank, (host, theirs) in enumerate(others, 1)
        for name, value in first.items()
        if theirs.get(name) != value
    ]
    if differences:
        raise UserError(
            f"ranks disagree: {'; '.join(differences[:8])}; start all with the same spec and the same installation"
        )
