"""Ranks played by threads of one process: the collectives of objectives/exchange.py without a process group."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from objectives.exchange import Ranks, grid


@dataclass
class Seats:
    """What a group's threads share."""

    barrier: threading.Barrier
    held: list[Any]


class ThreadGroup:
    """One thread's membership of a group."""

    def __init__(self, seats: Seats, rank: int) -> None:
        self.seats, self.rank, self.size = seats, rank, len(seats.held)

    def _all(self, value: torch.Tensor) -> list[torch.Tensor]:
        self.seats.held[self.rank] = value.detach().clone()
        self.seats.barrier.wait(300)
        out = list(self.seats.held)
        self.seats.barrier.wait(300)
        return out

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(part))

    def reduce_scatter(self, whole: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(whole)).sum(0).chunk(self.size)[self.rank].clone()

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(value)).sum(0)


def play(size: int, act: Callable[[int, Ranks], Any]) -> list[Any]:
    """What `act(rank, ranks)` returns on each of `size` ranks."""

    def seats(n: int) -> Seats:
        return Seats(threading.Barrier(n), [None] * n)

    rows, columns = grid(size)
    whole, across, down = seats(size), [seats(columns) for _ in range(rows)], [seats(rows) for _ in range(columns)]
    places = [
        Ranks(
            ThreadGroup(whole, r),
            ThreadGroup(across[r // columns], r % columns),
            ThreadGroup(down[r % columns], r // columns),
        )
        for r in range(size)
    ]
    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(act, rank, place) for rank, place in enumerate(places)]]
