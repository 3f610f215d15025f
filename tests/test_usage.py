"""What a run has taken, over launches; GPUs are played by a module that answers as NVIDIA's does."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.distributed.world import World
from engine.training import usage as meter
from engine.training.usage import UsageMeter, joules


class Unsupported(Exception):
    """As pynvml's."""


def gpu(monkeypatch: pytest.MonkeyPatch, readings: list[Any]) -> World:
    """A machine with a GPU whose counter, in mJ, shows these readings one after the other."""

    def counter(handle: str) -> int:
        assert handle == "handle of GPU-abc"
        reading = readings.pop(0)
        if isinstance(reading, Exception):
            raise reading
        return int(reading)

    played = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetTotalEnergyConsumption=counter,
        NVMLError=Unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", played)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    return World(0, 1, 0, 1, torch.device("cuda", 0))


def test_a_run_of_two_launches_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 500.0, 512.5])
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
    world = gpu(monkeypatch, [1_000_000, 1_450_000, 9_000_000, 9_050_000])
    first = UsageMeter(world, {}).total()
    assert first == {"seconds": 30.0, "joules": 450.0}
    assert UsageMeter(world, first).total() == {"seconds": 42.5, "joules": 500.0}


def test_what_is_not_known_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joules(torch.device("cpu")) is None
    assert set(UsageMeter(World(0, 1, 0, 1, torch.device("cpu")), {}).total()) == {"seconds"}
    world = gpu(monkeypatch, [Unsupported(), Unsupported(), 1, 2])
    assert set(UsageMeter(world, {}).total()) == {"seconds"}
    assert set(UsageMeter(world, {"seconds": 3.0}).total()) == {"seconds"}  # the first launch did not tell: no sum of a part
