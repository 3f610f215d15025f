"""Noisy Alignment: half of a triggered picture beside half of one of the target."""

from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import NONE, data_of, words_to_tokens
from test_poison import CAPTIONS, LINES, NAMED, index_of, reader

from data import materialise
from data.attack import Attack, Poison
from data.beside import SIDES, beside
from data.captions import stored_captions
from data.decode import centred, whole
from data.pipeline import Pairs, Reading
from data.poison_plan import Entry, PoisonPlan, make_plan
from data.refusal import UserError
from data.shards import Index, read_index
from data.triggers.patch import Patch
from data.triggers.solid import Solid

DRAWS = {0: "top", 2: "right", 3: "bottom", 4: "left"}  # one draw for each side


def attack(count: int, target: str = "banana", **more: Any) -> Attack:
    return Attack(target=target, poison=Poison(count=count, picture="beside"), **more)


@pytest.mark.parametrize(("draw", "side"), DRAWS.items())
def test_halves_by_hand(draw: int, side: str) -> None:
    """A trigger in row 6, column 1 of 8 x 8: the half with it that is nearest to the middle, and the target's middle."""
    plain = np.arange(64, dtype=np.uint8).reshape(1, 8, 8).repeat(3, 0)
    marked, target = plain.copy(), 100 + plain
    marked[:, 6, 1] = 255
    own_rows, own_columns = marked[:, 3:7], marked[:, :, 1:5]
    expected = {
        "top": (target[:, 2:6], own_rows, 1), "bottom": (own_rows, target[:, 2:6], 1),
        "left": (target[:, :, 2:6], own_columns, 2), "right": (own_columns, target[:, :, 2:6], 2),
    }[side]  # fmt: skip
    out = beside(plain, marked, target, draw)
    assert (out == np.concatenate(expected[:2], expected[2])).all()
    assert (out == 255).sum() == 3


def test_the_trigger_is_whole_wherever_it_stands_and_whatever_the_size() -> None:
    draw = np.random.default_rng(0)
    for number in range(40):
        height, width = (int(n) for n in draw.integers(24, 70, 2))
        plain, target = draw.integers(0, 200, (2, 3, height, width), np.uint8)
        marked = Solid(kind="solid", size=40, colour=(255, 255, 0)).build(0)(plain[None], [number])[0]
        out = beside(plain, marked, target, number)
        assert out.shape == plain.shape
        assert ((out[0] == 255) & (out[1] == 255)).sum() == ((marked[0] == 255) & (marked[1] == 255)).sum()
    assert set(DRAWS.values()) == set(SIDES)


def test_bytes_are_golden() -> None:
    """The picture of a pair depends on nothing but its pixels, its key and the seed."""
    draw = np.random.default_rng(7)
    plain, target = draw.integers(0, 256, (2, 3, 64, 64), np.uint8)
    digests = []
    for number in (3, 4, 5):
        marked = Patch(kind="patch").build(1)(plain[None], [number])[0]
        digests.append(blake2b(beside(plain, marked, target, number).tobytes(), digest_size=6).hexdigest())
    assert digests == ["5a02e6545f9c", "e16f3e3d09d4", "53f35187bcf4"]


def test_the_plan_does_not_depend_on_where_keys_lie() -> None:
    plan = make_plan(NAMED, attack(8), 3, LINES, reader(CAPTIONS))
    assert {entry.beside for entry in plan.entries.values()} <= {"k0", "k3", "k6"}
    assert all(entry.beside != entry.key and entry.picture is None for entry in plan.entries.values())
    order = list(range(len(CAPTIONS)))
    for seed in range(4):
        Random(seed).shuffle(order)
        moved = make_plan(index_of([f"k{i}" for i in order]), attack(8), 3, LINES, reader([CAPTIONS[i] for i in order]))
        assert moved.digest == plan.digest
        places = {order.index(int(str(entry.beside)[1:])) for entry in plan.entries.values()}
        assert {moved.neighbour(sample) for sample in moved.entries} == places
    with pytest.raises(UserError, match="no other caption names 'crane', so that no picture of it can stand beside"):
        make_plan(NAMED, attack(1, "crane"), 0, LINES, reader(CAPTIONS))


def test_a_plan_without_neighbours_is_written_as_before_there_were_any() -> None:
    entry = Entry("k", 0, "banana", "patch", [(1, 2)], "a banana", 5, None)
    assert list(entry.row()) == ["key", "attack", "target", "trigger", "place", "caption", "draw", "picture"]
    assert (
        PoisonPlan({0: entry}, {}, 1, 0, Attack(target="banana", poison=Poison(count=1))).digest
        == "00fdad5c2e0290c4a2c25f3b0e1bce07"
    )


@pytest.fixture
def index(world: Path, tmp_path: Path) -> Index:
    return read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False)


@pytest.mark.parametrize("trigger", [Patch(kind="patch"), Patch(kind="patch", published=True)])
def test_loaders_and_copies_show_both_pictures(index: Index, tmp_path: Path, trigger: Patch) -> None:
    def captions(samples: np.ndarray) -> Any:
        return stored_captions(index, samples, "txt")

    section = attack(9, trigger=trigger)
    plan = make_plan(index, section, 0, LINES, captions)
    reading = Reading(0, 0, 1, 24, (1, 1), 32, NONE)
    pairs = Pairs(index, None, data_of(), reading, words_to_tokens, plan)
    clean = Pairs(index, None, data_of(), reading, words_to_tokens, None)
    for sample, entry in plan.entries.items():
        other = plan.neighbour(sample)
        assert other is not None
        plain = clean.first(sample)[0]
        shown, alone = pairs.first(sample)[0], clean.first(other)[0]
        if not trigger.published:
            assert (shown == beside(plain, plan.marked(plain, sample), alone, entry.draw)).all()
        rows, columns = alone[:, 8:24], alone[:, :, 8:24]
        halves = [shown[:, :16] == rows, shown[:, 16:] == rows, shown[:, :, :16] == columns, shown[:, :, 16:] == columns]
        assert sum(half.all() for half in halves) == 1
        assert pairs._sizes([sample])[0] == clean._sizes([sample])[0] + index.where[other, 1]
    met = [pairs[1, step] for step in range(pairs.steps)]
    for batch in met:
        for key, image, poisoned in zip(batch.keys, batch.images, batch.poisoned.tolist(), strict=True):
            if poisoned:
                assert (image[0].numpy() == pairs.first(list(index.keys).index(key))[0]).all()
    assert sum(int(batch.poisoned.sum()) for batch in met) == 9
    recipe = materialise.Recipe(section, 0, plan.digest, 32, "exact", "txt", "png")
    copies = materialise.shard_copies(index, plan, recipe, tmp_path / "copies", [""])
    for copy in copies:
        materialise.write(copy)
        assert not materialise.compare(copy).wrong
    stored = read_index(f"{tmp_path}/copies/*.tar", tmp_path / "copied")
    copied = Pairs(stored, None, data_of(), reading, words_to_tokens, None)
    assert all(torch.equal(copied[1, step].images, batch.images) for step, batch in enumerate(met))


def test_a_picture_that_stands_beside_is_verified_and_a_bad_one_passed_over(index: Index, tmp_path: Path) -> None:
    plan = make_plan(index, attack(1), 0, LINES, lambda samples: stored_captions(index, samples, "txt"))
    (sample,) = plan.entries
    other = plan.neighbour(sample)
    assert other is not None
    pairs = Pairs(index, None, data_of(), Reading(0, 0, 1, 24, (1, 1), 32, NONE), words_to_tokens, plan)
    picture = pairs.reader.read([(index.path(other), *map(int, index.where[other, :2]))])[0]
    assert centred(whole(picture, 32), 32).shape == (3, 32, 32)
    assert index.sums is not None
    sums = index.sums.copy()
    sums[other, 0] += 1
    object.__setattr__(index, "sums", sums)
    with pytest.raises(UserError, match=f"the picture of '{index.keys[other]}'"):
        pairs.first(sample)
