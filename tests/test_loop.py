"""The one loop, around a learner that only looks at its batches."""

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pipeline import pairs_of

from data.loader import Workers
from data.pipeline import Batch, batches
from data.shards import read_index
from engine.distributed.world import World
from engine.training.learner import Outcome
from engine.training.loop import train

ONE = World(0, 1, 0, 1, torch.device("cpu"))


def run_of(
    pairs: Any, learn: Callable[[Batch, int], Outcome], measure: Callable[[float, int], None]
) -> tuple[Any, list[Any]]:
    """(a run of two epochs with a row of the journal every third step, its rows)."""
    rows: list[Any] = []
    machine = SimpleNamespace(log_steps=3, max_bad_steps=10, save_minutes=60)
    run = SimpleNamespace(spec=SimpleNamespace(machine=machine), settings=SimpleNamespace(measure_steps=None))
    head = SimpleNamespace(parameters={"scale": torch.zeros(1)})
    return SimpleNamespace(
        world=ONE,
        inputs=SimpleNamespace(pairs=pairs, run=run, folder=Path("nowhere")),
        learner=SimpleNamespace(learn=learn, head=head),
        engine=SimpleNamespace(get_global_grad_norm=lambda: None),
        journal=SimpleNamespace(row=lambda kind, **numbers: rows.append((kind, numbers))),
        begin_epoch=lambda epoch: None,
        seed=lambda step: None,
        measure=measure,
    ), rows


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_gone_when_its_step_is_done(world: Path, tmp_path: Path, workers: int) -> None:
    """Before the next step, and before a measure; the journal still says how many pairs there were and how many poisoned."""
    pairs = pairs_of(read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False))
    seen: list[Any] = []
    poisoned: list[int] = []

    def learn(batch: Batch, step: int) -> Outcome:
        assert all(one() is None for one in seen)
        seen.extend(weakref.ref(one) for one in (batch, batch.images, batch.tokens))
        poisoned.append(int(batch.poisoned.sum()))
        return Outcome({"loss": torch.tensor(1.0)}, torch.tensor(True), 0.1)

    def measure(epoch: float, step: int) -> None:
        assert all(one() is None for one in seen)
        measured.append(step)

    measured: list[int] = []
    run, rows = run_of(pairs, learn, measure)
    train(run, batches(pairs, 2, 0, Workers(workers)), lambda: False, lambda epoch: None)
    assert measured == [8, 16]
    assert len(seen) == 3 * 16
    assert [numbers["step"] for _, numbers in rows] == [3, 6, 8, 9, 12, 15, 16]
    assert [numbers["poisoned"] for _, numbers in rows] == [poisoned[numbers["step"] - 1] for _, numbers in rows]
    assert sum(poisoned) == 20
