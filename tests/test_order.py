"""The order is a pure function of (seed, epoch, position): every sample once, whatever the ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chance import derive, generator, ranks
from data.order import Order

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 9), st.integers(1, 70), st.integers(1, 50), st.integers(1, 3))
def test_every_sample_stands_once_in_an_epoch(counts: list[int], seed: int, lanes: int, window: int, epoch: int) -> None:
    order = Order(tuple(counts), seed, lanes, window)
    line = np.concatenate([order.batch(epoch, step, 1) for step in range(len(order))])
    assert sorted(line) == list(range(sum(counts)))


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(0, 9), st.integers(1, 70), st.integers(1, 50), st.integers(1, 16))
def test_batches_hold_what_single_positions_hold(counts: list[int], seed: int, lanes: int, window: int, size: int) -> None:
    order = Order(tuple(counts), seed, lanes, window)
    for step in range(order.steps(size)):
        alone = {int(order.batch(1, position, 1)[0]) for position in range(step * size, (step + 1) * size)}
        assert set(order.batch(1, step, size).tolist()) == alone


def test_epochs_and_seeds_differ_and_repeat() -> None:
    order = Order((50, 50), 0, 8, 16)
    assert (order.batch(1, 0, 20) == order.batch(1, 0, 20)).all()
    assert (order.batch(1, 0, 20) != order.batch(2, 0, 20)).any()
    assert (order.batch(1, 0, 20) != Order((50, 50), 1, 8, 16).batch(1, 0, 20)).any()


def test_a_batch_takes_turns_over_lanes_and_shuffles_well() -> None:
    order = Order((1000,) * 4, 0, 8, 500)
    line = np.concatenate([order.batch(1, step, 64) for step in range(order.steps(64))])
    assert abs(np.corrcoef(np.arange(len(line)), line)[0, 1]) < 0.1
    first = order.batch(1, 0, 64)
    assert len({int(row) // 1000 for row in first}) == 4  # all shards, since lanes lie in all of them


def test_derived_numbers_depend_on_every_name_and_its_kind() -> None:
    assert derive(1, "a") == derive(1, "a")
    assert len({derive(1, "a"), derive("1", "a"), derive("a", 1), derive(1, "a", 0), derive("1a")}) == 5
    assert 0 <= derive(0) < 2**63
    assert generator(0, "x").integers(1 << 40) == generator(0, "x").integers(1 << 40)


@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_depend_on_the_key_alone(seed: int) -> None:
    keys = [f"k{i}" for i in range(50)]
    table = dict(zip(keys, ranks(seed, "p", keys).tolist(), strict=True))
    assert ranks(seed, "p", keys[::-1]).tolist() == [table[key] for key in keys[::-1]]
    assert len(set(table.values())) == 50
