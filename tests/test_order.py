"""The order is a pure function of (seed, epoch, position): every sample once, whatever the ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import Mix, Order
from data.seeding import derive_seed, generator, mixed, number_of, ranks, smallest_k

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
    assert derive_seed(1, "a") == derive_seed(1, "a")
    assert (
        len({derive_seed(1, "a"), derive_seed("1", "a"), derive_seed("a", 1), derive_seed(1, "a", 0), derive_seed("1a")})
        == 5
    )
    assert 0 <= derive_seed(0) < 2**63
    assert generator(0, "x").integers(1 << 40) == generator(0, "x").integers(1 << 40)


@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_depend_on_the_key_alone(seed: int) -> None:
    keys = [f"k{i}" for i in range(50)]
    table = dict(zip(keys, ranks(seed, "p", number_of(keys)).tolist(), strict=True))
    assert ranks(seed, "p", number_of(keys[::-1])).tolist() == [table[key] for key in keys[::-1]]
    assert len(set(table.values())) == 50
    assert ranks(seed + 1, "p", number_of(keys)).tolist() != list(table.values())


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60), st.integers(0, 60), st.booleans())
def test_lowest_are_the_first_of_a_sorted_list(values: list[int], count: int, some: bool) -> None:
    array = np.array(values, np.uint64)
    among = np.arange(0, len(values), 2) if some else None
    taken = smallest_k(array, min(count, len(values if among is None else among)), among)
    places = range(len(values)) if among is None else among.tolist()
    assert array[taken].tolist() == sorted(values[i] for i in places)[: len(taken)]


def test_mixing_is_one_to_one_and_spreads_bits() -> None:
    numbers = np.arange(20000, dtype=np.uint64)
    out = mixed(numbers, 5)
    assert len(np.unique(out)) == 20000
    bits = np.unpackbits(out.view(np.uint8)).reshape(20000, 64).mean(0)
    assert np.abs(bits - 0.5).max() < 0.02  # five standard deviations: 0.018


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 9), st.integers(1, 40))
def test_a_wrapped_epoch_fills_its_last_batch_with_its_first_samples(counts: list[int], lanes: int, size: int) -> None:
    order, total = Order(tuple(counts), 0, lanes, 8, "wrap"), sum(counts)
    size = min(size, total)
    met = np.concatenate([order.batch(1, step, size) for step in range(order.steps(size))])
    assert len(met) == -(-total // size) * size
    assert set(met.tolist()) == set(range(total))
    assert np.bincount(met).max() <= 2


@pytest.mark.parametrize("shards", [1, 8, 100])
def test_shuffling_is_as_good_as_a_full_permutation_over_a_batch(shards: int) -> None:
    """Which pairs meet in a batch is what training sees: the mean number of pairs of a batch that are neighbours on disk is
    that of a full permutation, and the batch covers the shards as evenly."""
    total, size = 100_000, 1000
    order = Order((total // shards,) * shards, 0, 64, 1024)
    full = np.random.default_rng(0).permutation(total)

    def neighbours(batches: list[np.ndarray]) -> float:
        return float(np.mean([(np.diff(np.sort(batch)) == 1).sum() for batch in batches]))

    def spread(batches: list[np.ndarray]) -> float:
        """Standard deviation over batches of the mean place on disk, as a share; 0.29 / sqrt(size) for a permutation."""
        return float(np.std([batch.mean() / total for batch in batches]))

    ours = [order.batch(1, step, size) for step in range(total // size)]
    theirs = list(full.reshape(-1, size))
    assert neighbours(ours) < 2 * neighbours(theirs) + 1
    assert spread(ours) < 2 * spread(theirs)  # 1.4 with 100 shards and 64 lanes
    line = np.concatenate(ours)
    assert abs(np.corrcoef(line, full)[0, 1]) < 0.02


def test_reads_stay_within_a_window_of_each_lane() -> None:
    order = Order((10_000,) * 10, 0, 16, 512)
    for step in (0, 7, 40):
        rows = np.sort(order.batch(1, step, 160))
        pieces = np.split(rows, np.flatnonzero(np.diff(rows) > 600) + 1)
        assert len(pieces) <= 2 * 16  # a window may reach over the end of a shard
        assert all(piece[-1] - piece[0] < 512 for piece in pieces)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=4), st.integers(4, 24), st.data())
def test_a_mix_gives_each_source_its_share_and_meets_every_sample_at_its_own_pace(
    sizes: list[int], size: int, data: st.DataObject
) -> None:
    weights = tuple(data.draw(st.integers(1, 5)) for _ in sizes)
    mix = Mix(tuple(Order((n,), 0, 4, 8) for n in sizes), weights)
    firsts = np.cumsum([0, *sizes])
    met: list[list[int]] = [[] for _ in sizes]
    for epoch in (1, 2, 3):
        for step in range(mix.steps(size)):
            for sample in mix.batch(epoch, step, size).tolist():
                at = int(np.searchsorted(firsts, sample, side="right")) - 1
                met[at].append(sample - int(firsts[at]))
    given_ = sum(map(len, met))
    for source, (found, n) in enumerate(zip(met, sizes, strict=True)):
        assert abs(len(found) - given_ * weights[source] / sum(weights)) <= 1
        counts = np.bincount(found, minlength=n)
        assert counts.max() - counts.min() <= 2 if found else True
    assert len(mix) == sum(sizes)


def test_the_order_of_six_million_pairs_starts_anywhere_at_once() -> None:
    order = Order((10_000,) * 600, 0, 64, 1024)
    last = order.steps(2048) - 1
    assert len(set(order.batch(3, last, 2048).tolist())) == 2048
