"""Which core computes a run's tiles of similarities: chosen once, by rank 0, and the run's from then on."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from engine.distributed import collectives
from engine.distributed.world import World
from engine.training import checkpoint
from objectives import choice
from objectives.tiles import Core
from records.card import Card
from records.json_file import Damaged


class LossCore(NamedTuple):
    """The core of a run's steps on this machine; `before`: that of its steps so far, where it does not work here; `fault`:
    why not."""

    core: Core
    before: str | None = None
    fault: str | None = None


def loss_core(folder: Path, world: World, precision: str, width: int) -> LossCore:
    """The core of the run in that folder, the same on every rank; `width` is D.

    A run that goes on keeps the core that it began with. Where that does not work on some rank (another machine, no Triton),
    plain torch takes its place, which differs by rounding alone; the card says both, and a later launch where the first
    core works takes it again. Under bf16, rows are rounded before ranks exchange and multiply them, whatever the machine.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    name = collectives.on_rank_0(lambda: _name(folder)) or _fastest(world.device, dtype, width)
    faults = collectives.gather_objects(None if name == "torch" else choice.fault(name, world.device, dtype, width))
    fault = next((f"{text} (rank {rank})" for rank, text in enumerate(faults) if text), None)
    core = choice.core_of("torch" if fault else name)
    return LossCore(core._replace(dtype=dtype if precision == "bf16" else None), name if fault else None, fault)


def _name(folder: Path) -> str | None:
    """That of a run which goes on from a checkpoint."""
    if not checkpoint.committed(folder / "checkpoints"):
        return None
    try:
        card = Card.read(folder)
    except Damaged as damage:
        print(f"{damage.fault}; written anew, and the loss core chosen anew", file=sys.stderr, flush=True)
        return None
    if card is None:
        return None
    return card.loss_core_before or card.loss_core


@cache
def _fastest(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Rank 0's measurement, once a process; plain torch on a CPU."""
    if device.type != "cuda":
        return "torch"
    return collectives.on_rank_0(lambda: choice.fastest(device, dtype, width))
