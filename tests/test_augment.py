"""Further views made where a pair is read: captions, AutoAugment, WordNet."""

import os
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.augmentation.augment import Augment
from data.augmentation.eda import _insert, _replace, _swap, augmented_caption, check_synonyms, settle_synonyms
from data.augmentation.pictures import autoaugmented
from data.refusal import UserError

NONE = Augment(synonyms="none")
ROOT = Path(__file__).resolve().parent.parent


def test_augmentation_is_drawn_from_its_names_and_leaves_generators_alone() -> None:
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    state = torch.get_rng_state()
    views = [autoaugmented(image, 0, "k", epoch) for epoch in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert (views[0] == autoaugmented(image, 0, "k", 0)).all()
    assert views[0].shape == (3, 32, 32)
    assert len({view.tobytes() for view in views}) > 4


@settings(max_examples=50, deadline=None)
@given(st.text("abcdefgh ", min_size=1, max_size=60).filter(str.strip), st.integers(0, 1000))
def test_eda_keeps_words_and_repeats(text: str, epoch: int) -> None:
    out = augmented_caption(NONE, text, 0, "k", epoch)
    assert out == augmented_caption(NONE, text, 0, "k", epoch)
    assert set(out.split()) <= set(text.split())
    assert abs(len(out.split()) - len(text.split())) <= max(1, len(text.split()))
    assert augmented_caption(Augment(text="none"), text, 0, "k", epoch) == text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.integers(0, 50))
def test_no_caption_makes_eda_fail_or_empty(text: str, epoch: int) -> None:
    out = augmented_caption(NONE, text, 0, "k", epoch)
    assert bool(out) == bool(text)
    assert augmented_caption(NONE, "2024", 0, "k", epoch) == "2024"
    assert augmented_caption(NONE, "Cat", 0, "k", epoch) in ("cat", "cat cat")


def test_apostrophes_leave_no_word_of_their_own() -> None:
    kept = {augmented_caption(NONE, "don't", 0, "k", epoch) for epoch in range(30)}
    assert kept == {"dont", "dont dont"}
    assert augmented_caption(NONE, "dog\u2019s", 0, "k", 0) in ("dogs", "dogs dogs")


def test_a_swap_moves_two_words() -> None:
    text = "one two three four five six seven eight nine"
    for epoch in range(40):
        out = _swap(text.split(), 1, NONE, np.random.default_rng(epoch))
        assert sorted(out) == sorted(text.split())
        assert sum(a != b for a, b in zip(out, text.split(), strict=True)) == 2
    assert _swap(["one"], 1, NONE, np.random.default_rng(0)) == ["one"]


def test_frozen_captions_stay_the_same_in_every_epoch() -> None:
    text = "a red car stands on the wide road near the old house"
    frozen = Augment(synonyms="none", frozen=True)
    assert len({augmented_caption(frozen, text, 0, "k", epoch) for epoch in range(9)}) == 1
    assert len({augmented_caption(NONE, text, 0, "k", epoch) for epoch in range(9)}) > 5
    assert len({augmented_caption(NONE, text, 0, "k", 1, *view) for view in ((), (2,), (3,))}) > 1


def test_wordnet_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(word: str, folder: str | None) -> tuple[str, ...]:
        raise LookupError

    monkeypatch.setattr("data.augmentation.eda._synonyms", missing)
    with pytest.raises(UserError, match=r"apt install wordnet-base.*python -m nltk.downloader wordnet"):
        check_synonyms(Augment(synonyms="wordnet"))
    check_synonyms(NONE)
    section, words = settle_synonyms(Augment())
    assert section.synonyms == "none"
    assert "captions are varied by swap, deletion and insertion alone" in words
    assert settle_synonyms(NONE) == (NONE, "")
    monkeypatch.setattr("data.augmentation.eda._synonyms", lambda word, folder: ())
    assert settle_synonyms(Augment()) == (Augment(synonyms="wordnet"), "")


def test_synonyms_replace_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.augmentation.eda._synonyms", lambda word, folder: ("automobile",) if word == "car" else ())
    section = Augment(synonyms="wordnet")
    seen = {augmented_caption(section, "red car", 0, "k", epoch) for epoch in range(60)}
    assert "red automobile" in seen
    assert any(len(text.split()) == 3 and "automobile" in text for text in seen)


def test_synonyms_never_take_a_stop_words_place_and_each_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("auto", "machine", "motorcar")
    monkeypatch.setattr("data.augmentation.eda._synonyms", lambda word, folder: others)
    section, words = (
        Augment(synonyms="wordnet", rate=1.0),
        ["a", "man", "who", "is", "in", "the", "car", "and", "on", "a", "road"],
    )
    for epoch in range(20):
        out = _replace(words, 10, section, np.random.default_rng(epoch))
        assert [word in others for word in out] == [word in ("man", "car", "road") for word in words]
    inserted = {_insert(["car"], 1, section, np.random.default_rng(epoch))[-1] for epoch in range(60)}
    assert inserted >= set(others)
    twice = _replace(["red", "car", "red"], 1, Augment(synonyms="wordnet"), np.random.default_rng(0))
    assert twice in (["red", x, "red"] for x in others) or twice in ([x, "car", x] for x in others)
    monkeypatch.setattr("data.augmentation.eda._synonyms", lambda word, folder: ())
    assert _insert(["car"], 3, section, np.random.default_rng(0)) == ["car"], "no synonym, no insertion"


WORDNET = {  # one synset of two lemmas, in WordNet's own files
    "lexnames": "00\tnoun.all\t1\n",
    "data.noun": "00000000 00 n 02 car 0 motor_vehicle 0 000 | it has wheels  \n",
    "index.noun": "car n 1 0 1 0 00000000  \nmotor_vehicle n 1 0 1 0 00000000  \n",
    "index.sense": "",
    **{f"{kind}.{pos}": "" for kind in ("data", "index") for pos in ("verb", "adj", "adv")},
    **{f"{pos}.exc": "" for pos in ("noun", "verb", "adj", "adv")},
}
CODE = "from data.augmentation.augment import Augment; from data.augmentation.eda import _synonyms, check_synonyms; "


@pytest.mark.parametrize("how", ["as NLTK's corpus", "in a folder that the spec names", "as Debian leaves it"])
def test_synonyms_come_from_wordnets_files(tmp_path: Path, how: str) -> None:
    """In a process of its own: NLTK keeps the corpus, or the news that it is missing, for good."""
    folder = tmp_path / "corpora/wordnet"
    folder.mkdir(parents=True)
    for name, text in WORDNET.items():
        if name != "lexnames" or how != "as Debian leaves it":
            (folder / name).write_text(text)
    own = "NLTK" in how
    section = "Augment(synonyms='wordnet')" if own else f"Augment(synonyms='wordnet', wordnet={str(folder)!r})"
    code = f"{CODE}s = {section}; check_synonyms(s); print(_synonyms('car', s.wordnet))"
    environ = {**os.environ, "NLTK_DATA": str(tmp_path if own else tmp_path / "none")}
    out = forked.run([sys.executable, "-c", code], cwd=ROOT, env=environ)
    assert out.stdout == "('motor vehicle',)\n", out.stderr


def test_a_crop_is_a_range_of_shares() -> None:
    with pytest.raises(ValueError, match="expected two shares"):
        Augment(crop=(0.5, 0.2))
    assert Augment(image=("crop", "noise"), first=("flip",)).on_device(1)
    assert not Augment().on_device(2)
    assert np.prod(Augment().crop) == 0.08
