"""What a run has taken so far, over all its launches: seconds of wall time, and joules of its GPUs where they can tell."""

import time
from collections.abc import Mapping

import torch

from engine.distributed.collectives import gather_objects
from engine.distributed.world import World


class UsageMeter:
    """Counts from its making on, on top of what earlier launches of the run had taken when they last saved."""

    def __init__(self, world: World, before: Mapping[str, float] | None = None) -> None:
        """`before` is what an earlier meter's `total` said."""
        self.device, self.before = world.device, before or {}
        self.began, self.joules = time.monotonic(), joules(world.device)

    def total(self) -> dict[str, float]:
        """`seconds`, and `joules` of all ranks if every rank's GPU tells; to be called by all ranks."""
        out = {"seconds": round(self.before.get("seconds", 0.0) + time.monotonic() - self.began, 1)}
        now = joules(self.device)
        parts = gather_objects(None if now is None or self.joules is None else now - self.joules)
        known = [part for part in parts if part is not None]
        if len(known) == len(parts) and ("joules" in self.before or not self.before):
            out["joules"] = round(self.before.get("joules", 0.0) + sum(known), 1)
        return out


def joules(device: torch.device) -> float | None:
    """What the GPU has consumed since its driver was loaded; None of a CPU, or of a GPU that can't tell (NVIDIA's can since
    Volta)."""
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None
