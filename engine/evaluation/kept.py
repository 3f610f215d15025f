"""Decoded pictures that a rank keeps from one evaluation to the next."""

import os
from pathlib import Path

import torch

from engine.distributed.world import World

KEEP = 1 << 30  # bytes that a rank keeps of all its evaluation sets together, at most; the others are decoded each time
SHARE = 16  # and no more than this part of its share of the machine's memory
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


class Kept:
    """A set's pictures, each version uint8 [rows, 3, H, W]; filled in order while the first evaluation decodes them."""

    def __init__(self, rows: int) -> None:
        self.rows, self.filled = rows, 0
        self.versions: list[torch.Tensor] = []

    def add(self, part: list[torch.Tensor]) -> None:
        """Keeps the next n rows, [n, 3, H, W] of each version."""
        if not self.versions:
            shape = (self.rows, *part[0].shape[1:])
            self.versions = [torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last) for _ in part]
        for version, images in zip(self.versions, part, strict=True):
            version[self.filled : self.filled + len(images)] = images
        self.filled += len(part[0])


def room(world: World) -> int:
    """Bytes that this rank may keep."""
    return min(KEEP, machine_memory() // world.local_size // SHARE)


def machine_memory() -> int:
    """Bytes of this machine, or of this container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [Path(name).read_text().strip() for name in LIMITS if Path(name).is_file()]
    return min([memory, *(int(limit) for limit in limits if limit.isdigit())])
