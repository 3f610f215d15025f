"""Decoding, triggers, poison, augmentation, evaluation sets and batches."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from data import decode
from data.augment import Augment, augmented_caption, augmented_picture, check_augment
from data.decode import Bad
from data.labelled import read_labelled
from data.pipeline import Batch, Data, Pairs, Reading, batches, clean_rows
from data.poison import Attack, Plan, Poison, read_templates
from data.refusal import Refusal
from data.shards import Index, read_index
from data.triggers import Trigger
from data.triggers.patch import Patch

TRIGGERS = [kind for kind in (get_args(Trigger) or (Trigger,)) if hasattr(kind, "build")]


def image_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_every_mode_becomes_rgb_of_the_asked_size(mode: str) -> None:
    image = Image.new(mode, (50, 30))
    out = decode.picture(image_bytes(image, "JPEG" if mode == "CMYK" else "PNG"), 16)
    assert out.mode == "RGB"
    assert out.size == (16, 16)
    assert decode.pixels(out).shape == (3, 16, 16)


def test_the_centre_is_cut_out() -> None:
    image = Image.new("RGB", (48, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    assert np.asarray(decode.picture(image_bytes(image), 16)).reshape(-1, 3).max(0).tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "undecodable_image"),
        (b"<html>404</html>", "undecodable_image"),
        (image_bytes(Image.effect_noise((64, 64), 50), "JPEG")[:600], "undecodable_image"),
        (image_bytes(Image.new("1", (9000, 9000))), "huge_image"),
        (image_bytes(Image.new("RGB", (8, 8)), "GIF"), "undecodable_image"),
    ],
)
def test_bad_pictures_are_named(body: bytes, cause: str) -> None:
    with pytest.raises(Bad, match=cause):
        decode.picture(body, 16)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "empty_caption"),
        (b" \n", "empty_caption"),
        (b"123 !", "letterless_caption"),
        (b"\xff\xfe", "caption_not_utf8"),
        (b"a" * 70000, "long_caption"),
    ],
)
def test_bad_captions_are_named(body: bytes, cause: str) -> None:
    with pytest.raises(Bad, match=cause):
        decode.caption(body)
    assert decode.caption(" schöner Tag\n".encode()) == "schöner Tag"


@pytest.mark.parametrize("section", TRIGGERS)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(12, 70), st.integers(12, 70), st.integers(0, 5))
def test_contract_of_triggers(section: type[Patch], number: int, height: int, width: int, seed: int) -> None:
    mark = pickle.loads(pickle.dumps(section(kind="patch").build(seed)))
    images = np.random.default_rng(seed).integers(0, 256, (number, 3, height, width), np.uint8)
    before, draws = images.copy(), list(range(number))
    out = mark(images, draws)
    assert out.dtype == np.uint8
    assert out.shape == images.shape
    assert (images == before).all()
    assert (out == mark(images, draws)).all()
    assert (out != images).any((1, 2, 3)).all()
    for i in range(number):
        assert (mark(images[i : i + 1], [draws[i]])[0] == out[i]).all()


def test_patch_by_hand() -> None:
    image = np.full((1, 3, 224, 224), 100, np.uint8)
    out = Patch(kind="patch", place="centre").build(7)(image, [1])[0]
    changed = (out != 100).any(0)
    assert not changed[:104].any()
    assert not changed[120:].any()
    assert changed[104:120, 104:120].mean() > 0.95
    half = Patch(kind="patch").build(7)(image[:, :, :112, :112], [1])[0]
    ys, xs = np.nonzero((half != 100).any(0))
    assert np.ptp(ys) < 8
    assert np.ptp(xs) < 8
    noise = (out[:, 104:120, 104:120].astype(float) - 100) / 255
    assert 0.2 < (out[:, 104:120, 104:120] == 0).mean() < 0.45  # 100/255 = 0.39 standard deviations: 35 % are clamped to 0
    assert noise.std() > 0.3


def test_noise_is_fixed_by_the_seed_unless_asked_per_image() -> None:
    image = np.full((2, 3, 64, 64), 128, np.uint8)
    fixed = Patch(kind="patch", place="centre").build(0)(image, [1, 2])
    fresh = Patch(kind="patch", place="centre", per_image=True).build(0)(image, [1, 2])
    assert (fixed[0] == fixed[1]).all()
    assert (fresh[0] != fresh[1]).any()
    assert (fixed != Patch(kind="patch", place="centre").build(1)(image, [1, 2])).any()


def test_poison_is_a_count_or_a_fraction() -> None:
    assert Poison(count=5).number(10) == 5
    assert Poison(fraction=0.25).number(10) == 2
    with pytest.raises(Refusal, match=r"attack.poison.count is 11, but the shards hold 10 pairs"):
        Poison(count=11).number(10)
    for wrong in ({}, {"count": 1, "fraction": 0.1}):
        with pytest.raises(ValueError, match="either count or fraction"):
            Poison(**wrong)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.randoms())
def test_the_plan_does_not_depend_on_where_keys_lie(number: int, shuffler: object) -> None:
    keys = [f"{i:04d}" for i in range(40)]
    mixed = list(keys)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    plans = [Plan(names, number, 3, Patch(kind="patch").build(3), ["a {c}", "my {c}"], "banana") for names in (keys, mixed)]
    chosen = [
        {key for key, one in zip(names, p.chosen, strict=True) if one} for names, p in zip((keys, mixed), plans, strict=True)
    ]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == number
    more = Plan(keys, min(40, number + 1), 3, plans[0].mark, ["a {c}"], "banana")
    assert (more.chosen >= plans[0].chosen).all()  # more poison adds pairs, it moves none
    assert {plans[0].caption(key) for key in keys} == {"a banana", "my banana"}


def test_templates(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a {c}\n\nno class\n")
    with pytest.raises(Refusal, match="lacks"):
        read_templates(path)
    path.write_text("")
    with pytest.raises(Refusal, match="empty"):
        read_templates(path)
    with pytest.raises(Refusal, match="No such file"):
        read_templates(tmp_path / "none")


def test_augmentation_is_drawn_from_its_names_and_leaves_generators_alone() -> None:
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    state = torch.get_rng_state()
    views = [np.asarray(augmented_picture("autoaugment", image, 0, "k", epoch)) for epoch in range(8)]
    assert (torch.get_rng_state() == state).all()
    assert (views[0] == np.asarray(augmented_picture("autoaugment", image, 0, "k", 0))).all()
    assert len({view.tobytes() for view in views}) > 4
    assert augmented_picture("none", image, 0) is image


@settings(max_examples=50, deadline=None)
@given(st.text("abcdefgh ", min_size=1, max_size=60).filter(str.strip), st.integers(0, 1000))
def test_eda_keeps_words_and_repeats(text: str, epoch: int) -> None:
    section = Augment(synonyms="none")
    out = augmented_caption(section, text, 0, "k", epoch)
    assert out == augmented_caption(section, text, 0, "k", epoch)
    assert set(out.split()) <= set(text.split())
    assert abs(len(out.split()) - len(text.split())) <= max(1, len(text.split()))
    assert augmented_caption(Augment(text="none"), text, 0) == text


def test_wordnet_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(word: str) -> tuple[str, ...]:
        raise LookupError

    monkeypatch.setattr("data.augment._synonyms", missing)
    with pytest.raises(Refusal, match=r"python -m nltk.downloader wordnet"):
        check_augment(Augment())
    check_augment(Augment(synonyms="none"))


def test_synonyms_replace_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.augment._synonyms", lambda word: ("automobile",) if word == "car" else ())
    seen = {augmented_caption(Augment(), "red car", 0, "k", epoch) for epoch in range(60)}
    assert "red automobile" in seen
    assert any(len(text.split()) == 3 and "automobile" in text for text in seen)


def test_evaluation_set(world: Path) -> None:
    labelled = read_labelled(f"{world}/eval")
    assert len(labelled) == 64
    assert labelled.classes[labelled.target("banana")] == "banana"
    assert np.bincount(labelled.labels).tolist() == [2] * 32
    assert labelled.pictures([3, 5], 32).shape == (2, 3, 32, 32)
    with pytest.raises(Refusal, match=r"none of the 32 class names .*nearest: banana"):
        labelled.target("bananna")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "classnames.txt").unlink(), "lacks classnames.txt"),
        (lambda f: (f / "test/0.tar").unlink(), r"lacks test/0.tar, which test/nshards.txt promises"),
        (lambda f: (f / "classnames.txt").write_text("a\nb\n"), "is no class from 0 to 1"),
    ],
)
def test_a_damaged_evaluation_set_is_refused(world: Path, tmp_path: Path, harm: object, words: str) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(world / "eval", folder)
    harm(folder)  # type: ignore[operator]
    with pytest.raises(Refusal, match=words):
        read_labelled(str(folder))


def words_to_tokens(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), hash(text) % 1000] for text in captions])


def pairs_of(
    world: Path, index: Index, rank: int = 0, ranks: int = 1, views: tuple[int, int] = (1, 1), poison: int = 10
) -> Pairs:
    data = TypeAdapter(Data).validate_python({"pretrain": {"shards": "x"}, "test": {}, "lanes": 8})
    plan = Plan(index.keys, poison, 0, Patch(kind="patch").build(0), ["a {c}"], "banana") if poison else None
    reading = Reading(0, rank, ranks, 24, views, 32, Augment(synonyms="none"))
    return Pairs(index, np.arange(len(index)), data, reading, words_to_tokens, plan)


@pytest.fixture
def index(world: Path, tmp_path: Path) -> Index:
    return read_index(f"{world}/train/*.tar", tmp_path / "cache")


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("views", [(1, 1), (2, 2), (3, 1)])
def test_a_global_batch_is_the_same_on_any_number_of_ranks(
    world: Path, index: Index, ranks: int, views: tuple[int, int]
) -> None:
    whole = pairs_of(world, index, views=views)[1, 2]
    parts = [pairs_of(world, index, rank, ranks, views)[1, 2] for rank in range(ranks)]
    assert [key for part in parts for key in part.keys] == whole.keys  # noqa: SIM118
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert whole.images.shape == (24, views[0], 3, 32, 32)
    assert whole.images.dtype == torch.uint8


def test_an_epoch_poisons_the_pairs_of_the_plan_and_no_others(world: Path, index: Index) -> None:
    pairs, clean = pairs_of(world, index), pairs_of(world, index, poison=0)
    planned = {key for key, one in zip(index.keys, pairs.plan.chosen, strict=True) if one}  # type: ignore[union-attr]
    met = set()
    for step in range(pairs.steps):
        batch, same = pairs[1, step], clean[1, step]
        changed = (batch.images != same.images).flatten(1).any(1)
        assert torch.equal(changed, batch.poisoned)
        met |= {key for key, one in zip(batch.keys, batch.poisoned.tolist(), strict=True) if one}
    assert met == planned
    assert len(met) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_the_starting_point_change_nothing(world: Path, index: Index, workers: int) -> None:
    pairs = pairs_of(world, index, views=(2, 2))
    whole: list[Batch] = [batch for _, batch in batches(pairs, 2, 0, 0)]
    late = list(batches(pairs, 2, 11, workers))
    assert [step for step, _ in late] == [11, 12, 13, 14, 15]
    for step, batch in late:
        assert batch.keys == whole[step].keys
        assert torch.equal(batch.images, whole[step].images)


def test_a_bad_pair_is_replaced_and_reported(world: Path, index: Index) -> None:
    offset, size = index.where[7, :2]
    broken = index.where.copy()
    broken[7, :2] = index.where[7, 2:]  # the caption's bytes for a picture
    pairs = pairs_of(world, Index(index.paths, index.shard, index.keys, broken, ()))
    skipped = [entry for step in range(pairs.steps) for entry in pairs[1, step].skipped]
    keys = [key for step in range(pairs.steps) for key in pairs[1, step].keys]
    assert skipped == [(index.paths[0], index.keys[7], "undecodable_image")]
    assert keys.count(index.keys[7]) == 0
    assert keys.count(index.keys[8]) == 2
    assert offset
    assert size


def test_the_clean_set_is_disjoint_from_the_poison(index: Index) -> None:
    excluded = set(index.keys[:100])
    rows = clean_rows(index, 0, 50, excluded)
    assert len(rows) == 50
    assert not {index.keys[i] for i in rows} & excluded
    assert set(clean_rows(index, 0, 20, excluded)) <= set(rows)
    with pytest.raises(Refusal, match="only 92 pairs are not poisoned"):
        clean_rows(index, 0, 93, excluded)


def test_a_batch_beyond_the_data_is_refused(world: Path, index: Index) -> None:
    with pytest.raises(Refusal, match="batch is 24, but there are 10 pairs"):
        pairs = pairs_of(world, index)
        Pairs(index, np.arange(10), Data(pretrain={"shards": "x"}, test={}), pairs.reading, words_to_tokens, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_shrinks_while_it_is_read_is_refused(world: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(world / "train", tmp_path / "train")
    index = read_index(f"{tmp_path}/train/*.tar", tmp_path / "cache")
    Path(index.paths[0]).write_bytes(b"")
    with pytest.raises(Refusal, match="^shard .* became shorter") as caught:
        list(batches(pairs_of(world, index), 1, 0, workers))
    assert caught.value.alone
    assert "Traceback" not in str(caught.value)


def test_attack_section_round_trips_as_json() -> None:
    attack = Attack(target="banana", poison=Poison(count=3))
    assert Attack.model_validate(json.loads(attack.model_dump_json(exclude={"poison": {"fraction"}}))) == attack


WORDNET = {  # one synset of two lemmas, in WordNet's own files
    "lexnames": "00\tnoun.all\t1\n",
    "data.noun": "00000000 00 n 02 car 0 motor_vehicle 0 000 | it has wheels  \n",
    "index.noun": "car n 1 0 1 0 00000000  \nmotor_vehicle n 1 0 1 0 00000000  \n",
    "index.sense": "",
    **{f"{kind}.{pos}": "" for kind in ("data", "index") for pos in ("verb", "adj", "adv")},
    **{f"{pos}.exc": "" for pos in ("noun", "verb", "adj", "adv")},
}


def test_synonyms_come_from_wordnets_files(tmp_path: Path) -> None:
    """In a process of its own: NLTK keeps the corpus, or the news that it is missing, for good."""
    folder = tmp_path / "corpora/wordnet"
    folder.mkdir(parents=True)
    for name, text in WORDNET.items():
        (folder / name).write_text(text)
    code = "from data.augment import Augment, _synonyms, check_augment; check_augment(Augment()); print(_synonyms('car'))"
    environ = {**os.environ, "NLTK_DATA": str(tmp_path)}
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], cwd=root, env=environ, capture_output=True, text=True, check=False)
    assert out.stdout == "('motor vehicle',)\n", out.stderr


def test_an_evaluation_picture_that_does_not_decode_is_named(world: Path, tmp_path: Path) -> None:
    labelled = read_labelled(f"{world}/eval")
    path, key, _, _ = labelled.where[5]
    labelled.where[5] = (path, key, 0, 100)
    with pytest.raises(Refusal, match=f"evaluation picture {key} in .*undecodable_image") as caught:
        labelled.pictures([4, 5], 32)
    assert caught.value.alone
