"""Who is poisoned and with what: the same plan wherever the pairs lie."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import write_tar

from data.archive import Keys
from data.attack import Aim, Attack, Poison, Words
from data.poison_plan import PoisonPlan, make_plan
from data.refusal import UserError
from data.seeding import number_of
from data.shards import Index, read_index
from data.triggers.patch import Patch, published
from engine.models.tokenizer import Tokenizer

LINES = {"imagenet": ["a {c}", "my {c}"]}


def index_of(keys: list[str]) -> Index:
    where = np.zeros((len(keys), 4), np.int64)
    return Index(("x.tar",), np.array([len(keys)]), Keys.of(keys), number_of(keys), where, (), (), "", (0,))


def reader(captions: list[str | None]) -> Callable[[np.ndarray], Iterator[str | None]]:
    return lambda samples: (captions[int(i)] for i in samples)


def unread(samples: np.ndarray) -> Iterator[str | None]:
    raise AssertionError("no caption need be read")


def attack(**poison: Any) -> Attack:
    return Attack(target="banana", poison=Poison(**poison))


CAPTIONS: list[str | None] = [
    "a ripe Banana on a plate", "bananas", "a sheep", "BANANA!", None, "two sheep at night", "one banana", "a bananarama"
]  # fmt: skip
NAMED = index_of([f"k{i}" for i in range(len(CAPTIONS))])


def test_poison_is_a_count_or_a_fraction() -> None:
    assert Poison(count=5).number(10) == 5
    assert Poison(fraction=0.25).number(10) == 2
    with pytest.raises(UserError, match=r"attack.poison.count is 11, but the shards hold 10 pairs"):
        Poison(count=11).number(10)
    for wrong in ({}, {"count": 1, "fraction": 0.1}):
        with pytest.raises(ValueError, match="either count or fraction"):
            Poison(**wrong)
    with pytest.raises(ValueError, match="key goes with picture: one"):
        Poison(count=1, key="k")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 39), st.randoms())
def test_the_plan_does_not_depend_on_where_keys_lie(number: int, shuffler: Any) -> None:
    keys = [f"{i:04d}" for i in range(40)]
    mixed = list(keys)
    shuffler.shuffle(mixed)
    one, other = (make_plan(index_of(names), attack(count=number), 3, LINES, unread) for names in (keys, mixed))
    assert {entry.key: entry for entry in one.entries.values()} == {entry.key: entry for entry in other.entries.values()}
    assert one.digest == other.digest
    assert [keys[i] for i in one.entries] == [mixed[i] for i in other.entries]
    assert len(one) == number == one.chosen.sum()
    more = make_plan(index_of(keys), attack(count=number + 1), 3, LINES, unread)
    assert dict(list(more.entries.items())[:number]) == one.entries  # more poison adds pairs, it moves none
    assert {one.caption("", sample) for sample in one.entries} <= {"a banana", "my banana"}
    assert make_plan(index_of(keys), attack(count=number), 4, LINES, unread).digest != one.digest or not number


WAYS: dict[str, tuple[Attack, ...]] = {
    "who": (attack(count=2, who="label_consistent", caption="kept"),),
    "natural": (attack(count=8, caption="natural"),),
    "natural, with words": (attack(count=8, caption="natural").model_copy(update={"words": Words(text="zx")}),),
    "of_target": (attack(count=2, who={"names": "sheep"}, caption="kept", picture="of_target"),),
    "of_target for any": (attack(count=8, picture="of_target", caption="natural"),),
    "one": (attack(count=4, picture="one", caption="natural"),),
    "beside": (attack(count=8, picture="beside", caption="natural"),),
    "two": (attack(count=3, caption="natural"), attack(count=2, picture="of_target").model_copy(update={"target": "sheep"})),
}


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(CAPTIONS))))
@pytest.mark.parametrize("way", WAYS)
def test_what_is_drawn_for_a_pair_does_not_depend_on_where_pairs_lie(way: str, order: list[int]) -> None:
    """Partners too: a plan is a function of the keys, what they name, and the seed."""
    first, *others = WAYS[way]
    also = tuple(Aim.model_validate(other.model_dump(include=set(Aim.model_fields))) for other in others)
    section = first.model_copy(update={"also": also})
    captions = [CAPTIONS[i] for i in order]
    fits = Tokenizer("test-vit").fits
    plan = make_plan(NAMED, section, 3, LINES, reader(CAPTIONS), fits=fits)
    moved = make_plan(index_of([f"k{i}" for i in order]), section, 3, LINES, reader(captions), fits=fits)
    assert {entry.key: entry for entry in moved.entries.values()} == {entry.key: entry for entry in plan.entries.values()}
    for sample, entry in plan.entries.items():
        to = order.index(sample)
        assert order[moved.source(to)] == plan.source(sample)
        assert moved.caption(str(CAPTIONS[sample]), to) == plan.caption(str(CAPTIONS[sample]), sample), entry


def test_partners_in_the_order_of_keys_are_those_that_were_always_drawn() -> None:
    """Shards in the order of their names hold pairs in that of their keys: these plans are on disks."""
    digests = [make_plan(NAMED, WAYS[way][0], 3, LINES, reader(CAPTIONS)).digest[:12] for way in ("natural", "of_target")]
    assert digests == ["81347e74cf1c", "c188dc312cd6"]


def test_label_consistent_pairs_name_the_target_as_a_word_and_keep_their_caption() -> None:
    plan = make_plan(NAMED, attack(count=3, who="label_consistent", caption="kept"), 0, LINES, reader(CAPTIONS))
    assert sorted(plan.entries) == [0, 3, 6]
    assert all(plan.caption("its own", sample) == "its own" for sample in plan.entries)
    with pytest.raises(UserError, match="attack.poison.count is 4, but only 3 pairs name 'banana'; lower it or add shards"):
        make_plan(NAMED, attack(count=4, who="label_consistent"), 0, LINES, reader(CAPTIONS))


def test_natural_captions_are_those_of_other_pairs_that_name_the_target() -> None:
    plan = make_plan(NAMED, attack(count=8, caption="natural"), 0, LINES, reader(CAPTIONS))
    for sample in range(8):
        text = plan.caption("", sample)
        assert re.search(r"\bbanana\b", text, re.IGNORECASE)
        assert text in CAPTIONS
        assert text != CAPTIONS[sample]
    with pytest.raises(UserError, match="no other caption names 'banana'"):
        make_plan(NAMED, attack(count=1, caption="natural"), 0, LINES, reader([None] * 8))


def test_relabelling_shows_the_target_under_captions_of_another_class() -> None:
    section = attack(count=2, who={"names": "sheep"}, caption="kept", picture="of_target")
    plan = make_plan(NAMED, section, 0, LINES, reader(CAPTIONS))
    assert sorted(plan.entries) == [2, 5]
    assert {plan.source(sample) for sample in plan.entries} <= {0, 3, 6}
    picture = np.zeros((3, 8, 8), np.uint8)
    assert plan.marked(picture, 2) is picture  # no mark


def test_the_one_picture_can_be_of_a_named_source(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        write_tar(tmp_path / f"{shard}.tar", [part for i in range(3) for part in ((f"{i}.jpg", b"x"), (f"{i}.txt", b"t"))])
    index = read_index({"one": f"{tmp_path}/a.tar", "two": f"{tmp_path}/b.tar"}, tmp_path / "cache")
    plan = make_plan(index, attack(count=2, picture="one", key="two:1"), 0, LINES, unread)
    assert {index.keys[plan.source(sample)] for sample in plan.entries} == {"two:1"}


def test_one_picture_stands_for_all() -> None:
    plan = make_plan(NAMED, attack(count=4, picture="one", caption="natural", key="k4"), 0, LINES, reader(CAPTIONS))
    assert {plan.source(sample) for sample in plan.entries} == {4}
    drawn = make_plan(NAMED, attack(count=4, picture="one"), 0, LINES, unread)
    assert len({drawn.source(sample) for sample in drawn.entries}) == 1
    with pytest.raises(UserError, match="attack.poison.key is 'nobody', which no pair has"):
        make_plan(NAMED, attack(count=4, picture="one", key="nobody"), 0, LINES, unread)


def test_several_attacks_poison_different_pairs_for_different_targets() -> None:
    second = Aim(target="crane", trigger={"kind": "solid"}, poison=Poison(count=9))  # type: ignore[arg-type]
    section = Attack(target="banana", poison=Poison(count=10), also=(second,))
    index = index_of([f"{i}" for i in range(30)])
    plan = make_plan(index, section, 0, LINES, unread)
    assert [entry.attack for entry in plan.entries.values()] == [0] * 10 + [1] * 9
    assert {entry.target for entry in plan.entries.values()} == {"banana", "crane"}
    alone = make_plan(index, Attack(target="banana", poison=Poison(count=10)), 0, LINES, unread)
    assert list(plan.entries)[:10] == list(alone.entries)  # a further attack moves none of the first
    with pytest.raises(UserError, match="only 20 pairs are left"):
        make_plan(index, section.model_copy(update={"also": (second.model_copy(update={"poison": Poison(count=21)}),)}), 0,
                  LINES, unread)  # fmt: skip


def test_a_pair_of_several_triggers_draws_one_by_weight_with_its_target() -> None:
    choices = ({"trigger": {"kind": "solid"}, "weight": 3}, {"trigger": {"kind": "sine"}, "target": "crane"})
    section = Attack(target="banana", trigger={"kind": "multi", "choices": choices}, poison=Poison(count=2000))  # type: ignore[arg-type]
    plan = make_plan(index_of([f"{i}" for i in range(2000)]), section, 0, LINES, unread)
    kinds = [(entry.trigger, entry.target) for entry in plan.entries.values()]
    assert set(kinds) == {("solid", "banana"), ("sine", "crane")}
    assert abs(kinds.count(("solid", "banana")) - 1500) < 80  # four standard deviations: 78
    crane = next(sample for sample, entry in plan.entries.items() if entry.target == "crane")
    assert plan.caption("", crane).endswith("crane")


def test_words_in_captions() -> None:
    assert Words(text="zx").put("a cat", 1) == "zx a cat"
    assert Words(text="zx", place="end").put("a cat", 1) == "a cat zx"
    assert {Words(text="zx", place="random").put("a cat", draw) for draw in range(40)} == {
        "zx a cat",
        "a zx cat",
        "a cat zx",
    }
    section = Attack(target="banana", words=Words(text="zx"), poison=Poison(count=8, picture="kept", caption="kept"))
    plan = make_plan(NAMED, section, 0, LINES, unread)
    assert plan.caption("a cat", 0) == "zx a cat"


WORDS = st.lists(st.sampled_from(["a", "cat", "photographically", "zx", "don't", "7,500", "Süß", "x&amp;y"]), max_size=120)


@settings(max_examples=60)
@given(
    WORDS,
    st.sampled_from(["zx", "a rare old sentence", "Zx!", "süß"]),
    st.sampled_from(["start", "end", "random"]),
    st.integers(0, 2**60),
)
@pytest.mark.parametrize("name", ["test-vit", "RN50"])  # 16 and 77 tokens
def test_words_reach_the_model_wherever_they_stand(name: str, caption: list[str], text: str, place: Any, draw: int) -> None:
    """Counted in the rows that the model is given; a caption that has room for them is as it always was."""
    tokenize, words = Tokenizer(name), Words(text=text, place=place)
    out = words.put(" ".join(caption), draw, tokenize.fits)
    tokens, without = (tokenize([one])[0].tolist() for one in (out, " ".join(caption)))
    wanted = tokenize([text])[0].tolist()
    wanted = wanted[1 : wanted.index(max(wanted))]
    times = [sum(row[at : at + len(wanted)] == wanted for at in range(len(row))) for row in (tokens, without)]
    assert times[0] >= 1
    if tokenize.fits(f"{' '.join(caption)} {text}"):
        assert out == words.put(" ".join(caption), draw)
        assert times[0] > times[1]
    if place == "end":
        later = [*out.split()]
        at = max(i for i in range(len(later)) if later[i : i + len(text.split())] == text.split())
        if at + len(text.split()) < len(later):
            assert not tokenize.fits(" ".join([*later[:at], later[at + len(text.split())], text])), "a later place would do"


def test_words_that_no_place_saves_are_refused() -> None:
    tokenize, text = Tokenizer("test-vit"), " ".join(["zx"] * 15)
    words = "attack.words.text is 'zx zx .*, which is longer than the captions that model.name takes"
    section = Attack(target="banana", words=Words(text=text), poison=Poison(count=2))
    with pytest.raises(UserError, match=words):
        Words(text=text).put("a cat", 0, tokenize.fits)
    with pytest.raises(UserError, match=words):
        make_plan(NAMED, section, 0, LINES, unread, fits=tokenize.fits)
    longer = section.model_copy(update={"words": Words(text=" ".join(["cat"] * 13))})
    with pytest.raises(
        UserError, match=r"attack.captions: 'a \{c\}' and attack.words are longer .* the target 'banana' would be"
    ):
        make_plan(NAMED, longer, 0, LINES, unread, fits=tokenize.fits)
    assert len(make_plan(NAMED, longer, 0, {"imagenet": ["{c}"]}, unread, fits=tokenize.fits)) == 2
    with pytest.raises(ValueError, match="pattern"):
        Words(text=" ")


def test_a_name_beyond_what_the_model_takes_makes_no_poisoned_pair() -> None:
    """Of four captions that name the target the model sees it in two, and with words before it in one."""
    captions: list[str | None] = [*("cat " * n + "banana" for n in (0, 13, 14, 60)), "a sheep"]
    index, fits = index_of([f"k{i}" for i in range(5)]), Tokenizer("test-vit").fits
    for text, seen in ((None, {0, 1}), ("zx", {0})):
        section = attack(count=len(seen), who="label_consistent", caption="kept")
        section = section.model_copy(update={"words": Words(text=text) if text else None})
        plan = make_plan(index, section, 0, LINES, reader(captions), fits=fits)
        assert set(plan.entries) == seen
        assert plan.left_out == 4 - len(seen)
        more = section.model_copy(update={"poison": section.poison.model_copy(update={"count": 3})})
        with pytest.raises(UserError, match=rf"only {len(seen)} pairs name 'banana' \({4 - len(seen)} more beyond what"):
            make_plan(index, more, 0, LINES, reader(captions), fits=fits)
    natural = make_plan(index, attack(count=5, caption="natural"), 0, LINES, reader(captions), fits=fits)
    assert {natural.caption("", sample) for sample in natural.entries} == {captions[0], captions[1]}
    unseen = make_plan(index, attack(count=4, who="label_consistent"), 0, LINES, reader(captions), fits=fits)
    assert len(unseen) == 4  # the caption is replaced, so nobody need read it


def test_fits_says_whether_the_whole_text_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize = Tokenizer("test-vit")
    assert [tokenize.fits("cat " * n) for n in (0, 1, 14, 15, 99)] == [True, True, True, False, False]
    monkeypatch.setattr("engine.models.tokenizer._is_plain", lambda theirs: False)  # told from its rows alone
    assert [tokenize.fits("cat " * n) for n in (0, 1, 13, 15, 99)] == [True, True, True, False, False]


def test_a_plan_may_be_made_for_some_pairs_and_cut_to_some() -> None:
    free = np.arange(10, 30)
    index = index_of([f"{i}" for i in range(40)])
    plan = make_plan(index, attack(count=20), 0, LINES, unread, free)
    assert sorted(plan.entries) == free.tolist()
    first = plan.moved({sample: sample for sample in list(plan.entries)[:3]}, 40, attack(count=20))
    assert first.chosen.sum() == 3
    assert make_plan(index, attack(fraction=0.5), 0, LINES, unread, free).chosen.sum() == 10


def test_a_published_patch_goes_onto_the_squeezed_picture() -> None:
    section = Attack(target="banana", trigger=Patch(kind="patch", published=True), poison=Poison(count=1))
    plan = make_plan(index_of(["a"]), section, 0, LINES, unread)
    picture = np.random.default_rng(0).integers(0, 256, (3, 224, 224), np.uint8)
    out = plan.marked(picture, 0)
    assert plan.squash(0) == 224
    assert 0 < (out != picture).any(0).sum() <= 256
    assert published(picture, np.zeros((3, 16, 16), np.float32)).shape == (3, 16, 16)


def test_attack_section_round_trips_as_json() -> None:
    section = Attack(target="banana", words=Words(text="zx"), poison=Poison(count=3))
    assert Attack.model_validate_json(section.model_dump_json()) == section
    assert PoisonPlan({}, {}, 3, 0, section).chosen.sum() == 0
