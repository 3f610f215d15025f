"""Batches: the same on every machine, whatever is wrong with some of the pairs."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from tars import pair, write_tar

from data import captions, pipeline
from data.attack import Attack, Poison
from data.augmentation.augment import Augment
from data.captions import stored_captions
from data.decode import centred, squeezed, whole
from data.loader import Workers
from data.pipeline import Batch, Pairs, Reading, batches
from data.poison_plan import PoisonPlan, make_plan
from data.refusal import UserError
from data.shards import Index, read_index
from data.sources import CleanSource, Data, clean_rows
from data.store import in_parts
from data.triggers.patch import Patch

NONE = Augment(synonyms="none")
PATCH = Patch(kind="patch")


def words_to_tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), sum(map(ord, text)) % 1000] for text in captions])


def data_of(**more: Any) -> Data:
    return TypeAdapter(Data).validate_python({"pretrain": {"shards": "x"}, "test": {}, "lanes": 8, **more})


def plan_of(index: Index, count: int, trigger: Any = PATCH, **more: Any) -> PoisonPlan | None:
    attack = Attack(target="banana", trigger=trigger, poison=Poison(count=count, **more))
    return make_plan(index, attack, 0, {"imagenet": ["a {c}"]}, lambda samples: ()) if count else None


def pairs_of(
    index: Index,
    rank: int = 0,
    ranks: int = 1,
    views: tuple[int, int] = (1, 1),
    poison: int = 10,
    augment: Augment = NONE,
    batch: int = 24,
    **more: Any,
) -> Pairs:
    reading = Reading(0, rank, ranks, batch, views, 32, augment)
    return Pairs(index, None, data_of(**more), reading, words_to_tokens, plan_of(index, poison))


@pytest.fixture
def index(world: Path, tmp_path: Path) -> Index:
    return read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("views", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize(
    "augment", [NONE, Augment(synonyms="none", image="simclr", first=("noise",))], ids=["pillow", "device"]
)
def test_a_global_batch_is_the_same_on_any_number_of_ranks(
    index: Index, ranks: int, views: tuple[int, int], augment: Augment
) -> None:
    cpu = torch.device("cpu")
    whole_ = pairs_of(index, views=views, augment=augment)[1, 2]
    parts = [pairs_of(index, rank, ranks, views, augment=augment)[1, 2] for rank in range(ranks)]
    assert [key for part in parts for key in part.keys] == whole_.keys  # noqa: SIM118
    assert torch.equal(torch.cat([part.pictures(cpu) for part in parts]), whole_.pictures(cpu))
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole_.tokens)
    assert whole_.pictures(cpu).shape == (24, views[0], 3, 32, 32)
    assert whole_.views == views[0]
    assert whole_.images.dtype == torch.uint8
    assert whole_.tokens.dtype == torch.int32
    first = whole_.first()
    assert torch.equal(first.pictures(cpu)[:, 0], whole_.pictures(cpu)[:, 0])


def test_an_epoch_poisons_the_pairs_of_the_plan_and_no_others(index: Index) -> None:
    pairs, clean = pairs_of(index), pairs_of(index, poison=0)
    assert pairs.plan is not None
    planned = {index.keys[i] for i in pairs.plan.entries}
    met = set()
    for step in range(pairs.steps):
        batch, same = pairs[1, step], clean[1, step]
        changed = (batch.images != same.images).flatten(1).any(1)
        assert torch.equal(changed, batch.poisoned)
        met |= {key for key, one in zip(batch.keys, batch.poisoned.tolist(), strict=True) if one}
    assert met == planned
    assert len(met) == 10


def test_a_published_patch_is_put_on_before_the_picture_is_resized(index: Index) -> None:
    plan = plan_of(index, 5, Patch(kind="patch", published=True))
    assert plan is not None
    pairs = Pairs(index, None, data_of(), Reading(0, 0, 1, 8, (1, 1), 32, NONE), words_to_tokens, plan)
    sample = next(iter(plan.entries))
    rgb = whole(pairs.reader.read([(index.path(sample), *map(int, index.where[sample, :2]))])[0])
    expected = centred(plan.marked(squeezed(rgb, 224), sample).transpose(1, 2, 0), 32)
    assert (pairs.first(sample)[0] == expected).all()


def test_a_poisoned_pair_may_show_another_pairs_picture(index: Index) -> None:
    attack = Attack(target="banana", poison=Poison(count=6, picture="one", key=index.keys[100]))
    plan = make_plan(index, attack, 0, {"imagenet": ["a {c}"]}, lambda samples: ())
    pairs = Pairs(index, None, data_of(), Reading(0, 0, 1, 24, (1, 1), 32, NONE), words_to_tokens, plan)
    clean = pairs_of(index, poison=0)
    shown = clean.first(100)[0]
    batch = next(batch for step in range(pairs.steps) if (batch := pairs[1, step]).poisoned.any())
    for place in batch.poisoned.nonzero().flatten():
        assert (batch.images[place, 0].numpy() == shown).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("last", ["drop", "wrap"])
def test_workers_and_the_starting_point_change_nothing(index: Index, workers: int, last: str) -> None:
    pairs = pairs_of(index, views=(2, 2), batch=40, last=last)
    assert pairs.steps == (4 if last == "drop" else 5)  # of 192 pairs
    whole_: list[Batch] = [batch for _, batch in batches(pairs, 2, 0, Workers(0))]
    begin = pairs.steps + 1
    late = list(batches(pairs, 2, begin, Workers(workers)))
    assert [step for step, _ in late] == list(range(begin, 2 * pairs.steps))
    for step, batch in late:
        assert batch.keys == whole_[step].keys
        assert torch.equal(batch.images, whole_[step].images)


def test_a_batch_is_read_in_parts_of_bounded_size(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_, wanted = pairs_of(index, batch=48, views=(2, 1)), index.where[:, [1, 3]].sum(1)
    batch = whole_[1, 1]
    monkeypatch.setattr(pipeline, "TOGETHER", int(4 * wanted.max()))
    monkeypatch.setattr(pipeline, "GAP", 0)
    pairs = pairs_of(index, batch=48, views=(2, 1))
    parts = pairs[1, 1]
    assert parts.keys == batch.keys
    assert torch.equal(parts.images, batch.images)
    assert len(whole_.reader.buffer) > 4 * wanted.max() >= len(pairs.reader.buffer) > 0
    assert list(in_parts([], 5)) == []
    assert [(part.start, part.stop) for part in in_parts([3, 2, 1, 9, 9, 0, 5], 5)] == [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (5, 7),
    ]
    texts = list(stored_captions(index, np.arange(192), "txt"))
    monkeypatch.setattr(captions, "TOGETHER", 50)
    assert list(stored_captions(index, np.arange(192), "txt")) == texts


def test_a_bad_pair_is_replaced_and_reported(index: Index) -> None:
    broken = index.where.copy()
    broken[7, :2] = index.where[7, 2:]  # the caption's bytes for a picture
    pairs = pairs_of(replace(index, where=broken, sums=None))
    skipped = [entry for step in range(pairs.steps) for entry in pairs[1, step].skipped]
    keys = [key for step in range(pairs.steps) for key in pairs[1, step].keys]
    assert skipped == [(index.paths[0], index.keys[7], "undecodable_image")]
    assert keys.count(index.keys[7]) == 0
    assert keys.count(index.keys[8]) == 2


def test_if_nothing_decodes_the_run_ends(index: Index) -> None:
    broken = index.where.copy()
    broken[:, :2] = index.where[:, 2:]
    with pytest.raises(UserError, match="none of the pairs can be decoded"):
        pairs_of(replace(index, where=broken, sums=None))[1, 0]


def test_the_clean_set_is_disjoint_from_the_poison(index: Index) -> None:
    excluded = np.zeros(len(index), bool)
    excluded[:100] = True
    nothing = np.array([], np.int64)
    rows = clean_rows(index, 0, CleanSource(pairs=50), excluded, nothing)
    assert len(rows) == 50
    assert not excluded[rows].any()
    assert set(clean_rows(index, 0, CleanSource(pairs=20), excluded, nothing)) <= set(rows)
    assert len(clean_rows(index, 0, CleanSource(), excluded, nothing)) == 92
    with pytest.raises(UserError, match="only 92 pairs are not poisoned"):
        clean_rows(index, 0, CleanSource(pairs=93), excluded, nothing)


def test_leftover_poison_is_left_in_the_clean_set(index: Index) -> None:
    poisoned = np.array([9, 3, 50, 7])
    excluded = np.isin(np.arange(len(index)), poisoned)
    rows = clean_rows(index, 0, CleanSource(pairs=20, leftover=2), excluded, poisoned)
    assert len(rows) == 20
    assert set(rows) & set(poisoned) == {9, 3}  # the first that the attack drew
    with pytest.raises(UserError, match="data.clean.leftover is 5, but 4 pairs are poisoned"):
        clean_rows(index, 0, CleanSource(pairs=20, leftover=5), excluded, poisoned)
    for wrong, words in (
        ({"leftover": 1, "held_out": True, "pairs": 5}, "it does not go with held_out"),
        ({"held_out": True}, "needs pairs"),
        ({"leftover": 3, "pairs": 2}, "more than the 2 pairs"),
    ):
        with pytest.raises(ValueError, match=words):
            CleanSource(**wrong)  # type: ignore[arg-type]


def test_sources_have_their_share_of_every_batch(tmp_path: Path) -> None:
    picture = np.full((8, 8, 3), 7, np.uint8)
    write_tar(tmp_path / "a.tar", [member for i in range(30) for member in pair(f"{i}", Image.fromarray(picture))])
    write_tar(tmp_path / "b.tar", [member for i in range(90) for member in pair(f"{i}", Image.fromarray(picture))])
    patterns = {"a": f"{tmp_path}/a.tar", "b": f"{tmp_path}/b.tar"}
    index = read_index(patterns, tmp_path / "cache")
    sources = {"a": {"shards": patterns["a"], "weight": 3}, "b": {"shards": patterns["b"]}}
    pairs = pairs_of(index, poison=0, batch=12, pretrain={"sources": sources})
    assert pairs.steps == 10
    counts: Counter[str] = Counter()
    for step in range(pairs.steps):
        batch = pairs[1, step]
        assert sum(key.startswith("a:") for key in batch.keys) == 9
        counts.update(batch.keys)
    assert all(counts[f"a:{i}"] == 3 for i in range(30))  # three passes over the smaller in one over both
    assert max(counts[f"b:{i}"] for i in range(90)) == 1
    with pytest.raises(UserError, match="gives no pair to a batch of 2"):
        pairs_of(index, poison=0, batch=2, pretrain={"sources": sources})
    with pytest.raises(ValueError, match="give either shards or sources"):
        data_of(pretrain={"shards": "x", "sources": sources})


def test_captions_are_read_in_order_without_pictures(index: Index) -> None:
    pairs = pairs_of(index, poison=0)
    texts = list(stored_captions(index, np.array([5, 0, 191]), "txt"))
    assert texts == [pairs.first(sample)[1] for sample in (5, 0, 191)]


def test_a_batch_beyond_the_data_is_refused(index: Index) -> None:
    with pytest.raises(UserError, match="batch is 24, but there are 10 pairs"):
        Pairs(index, np.arange(10), data_of(), Reading(0, 0, 1, 24, (1, 1), 32, NONE), words_to_tokens, None)


@pytest.mark.parametrize("place", [0, 2])
def test_other_bytes_than_were_indexed_are_never_trained_on(world: Path, tmp_path: Path, place: int) -> None:
    """Whatever was changed since the run began, at the same size and time: told when it is read."""
    shutil.copytree(world / "train", tmp_path / "train")
    index = read_index(f"{tmp_path}/train/*.tar", tmp_path / "cache")
    pairs, path, before = pairs_of(index), Path(index.paths[0]), os.stat(index.paths[0])
    body, at = bytearray(path.read_bytes()), int(index.where[5, place] + index.where[5, place + 1] - 1)
    body[at] ^= 1
    path.write_bytes(body)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    what = "picture" if not place else "caption"
    words = (
        rf"the {what} of '{index.keys[5]}' in {path} is not what was indexed: its shard is damaged, or was changed at the"
    )
    with pytest.raises(UserError, match=words):
        for step in range(pairs.steps):
            pairs[1, step]
    if place:
        with pytest.raises(UserError, match=words):
            list(stored_captions(index, np.array([4, 5]), "txt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_shrinks_while_it_is_read_is_refused(world: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(world / "train", tmp_path / "train")
    index = read_index(f"{tmp_path}/train/*.tar", tmp_path / "cache")
    Path(index.paths[0]).write_bytes(b"")
    with pytest.raises(UserError, match="^shard .* became shorter") as caught:
        list(batches(pairs_of(index), 1, 0, Workers(workers)))
    assert caught.value.alone
    assert "Traceback" not in str(caught.value)
