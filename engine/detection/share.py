"""The share of each rank in scoring."""

from dataclasses import dataclass

import torch

from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World


@dataclass(frozen=True)
class RankShare:
    """measures/detectors/contract.py's Share of this rank."""

    rank: int
    size: int

    @classmethod
    def of(cls, world: World) -> "RankShare":
        """This rank's."""
        return cls(world.rank, world.size)

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over ranks."""
        collectives.all_reduce_sum_([part])
        return part

    def beat(self) -> None:
        """This rank is at work."""
        heartbeat()
