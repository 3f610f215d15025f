"""Evaluation is shared over ranks and counts every picture once."""

import copy
import itertools
import math
import os
import re
import shutil
import threading
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from conftest import antidote, journals, settings
from ranks import play

from configs import plan
from configs.spec import Spec, load
from data.labelled import Labelled
from data.loader import Workers
from data.refusal import UserError
from data.synthetic import SyntheticWorld, write_world
from engine.distributed.world import World
from engine.estimate.cost import encoded_times
from engine.evaluation import encode, evaluate, feed, kept
from engine.evaluation import sets as eval_sets_module
from engine.evaluation.encode import Cut, Encoder
from engine.evaluation.sets import eval_sets, prompts_of, set_names
from engine.evaluation.texts import TextRows
from engine.models import clip
from engine.models.heads import head_parts
from engine.models.tokenizer import Tokenizer
from engine.models.towers import Towers
from engine.training.kmeans import spherical
from objectives.exchange import Ranks
from records.rows import MeasureRow, in_words, parse_row, row_of

Result = TypeVar("Result")
ACCURACY = {"top1", "top5", "top10", "pictures", "classes"}
SUCCESS = {"asr", "asr_floor", "asr_top5", "asr_top10", "asr_all", "asr_diluted", "robust_top1", "marked_top1", "others"}


def alone(rank: int, size: int) -> World:
    return World(rank, size, 0, 1, torch.device("cpu"))


def on_ranks(size: int, act: Callable[[World], Result]) -> list[Result]:
    """What `act` gives on each of so many ranks, which are threads."""
    here = threading.local()

    def one(rank: int, places: Ranks) -> Result:
        here.group = places.everyone
        return act(alone(rank, size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "gather_rows", lambda rows: here.group.gather(rows))
        return play(size, one)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7])
def test_ranks_share_the_pictures_evenly_and_each_is_counted_once(spec: Path, ranks: int) -> None:
    loaded = load(spec).spec
    parts = [eval_sets(loaded, alone(rank, ranks))[0] for rank in range(ranks)]
    rows = [row for part in parts for row in part.rows]
    assert rows[:64] == list(range(64))
    assert len({len(part.rows) for part in parts}) == 1


def test_numbers_do_not_depend_on_the_batch_and_the_mode_is_kept(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(spec).spec
    towers, tokenize = clip.build("test-vit", 0), Tokenizer("test-vit")
    towers.train()
    sets = eval_sets(loaded, alone(0, 1))
    whole = evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 256), sets)
    assert evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 7), sets) == whole
    assert towers.training
    assert sets[0].kept is not None
    assert sets[0].kept.filled == 64
    cut = eval_sets(loaded, alone(0, 1))
    for place in (3, 0, 1, 2):  # asked to leave at this of the places where all ranks ask
        asked = itertools.count()
        with pytest.raises(Cut):
            evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 7, leave=lambda: next(asked) == place), cut)  # noqa: B023
        assert towers.training
    assert evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 7), cut) == whole
    monkeypatch.setattr(kept, "KEEP", 0)  # too many pictures to keep: decoded each time
    again = eval_sets(loaded, alone(0, 1))
    assert again[0].kept is None
    assert evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 256), again) == whole
    assert whole[0]["images"] == "tiny"
    assert set(whole[0]) == {"images", "answers"} | ACCURACY | SUCCESS


def test_pictures_with_the_trigger_are_the_clean_ones_with_a_patch(spec: Path) -> None:
    loaded = load(spec).spec
    clean, marked = eval_sets(loaded, alone(0, 1))[0].pictures([0, 1, 2])
    changed = (clean != marked[0]).any(1).flatten(1).sum(1)
    assert ((changed > 0) & (changed <= 4)).all()  # 16 of 224 pixels is 2 of 32


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,001 pictures, which no number of ranks from 2 to 6 shares evenly."""
    folder = tmp_path_factory.mktemp("odd") / "world"
    write_world(folder, SyntheticWorld(pairs=8, tests=1001, pixels=32, seed=3, pairs_per_shard=8))
    return folder / "eval"


def test_counts_of_1001_pictures_are_the_same_on_1_2_and_3_ranks(spec: Path, odd: Path) -> None:
    """And each rate is a whole number of the pictures that it is of."""
    wanted = load(spec, [f"data.test.tiny={odd}"]).spec
    tokenize, built = Tokenizer("test-vit"), clip.build("test-vit", 0).eval()

    def act(world: World) -> list[dict[str, Any]]:
        return evaluate.evaluate(Encoder(built, tokenize, world, 128), eval_sets(wanted, world))

    found = [one for size in (1, 2, 3) for one in on_ranks(size, act)]
    assert len(found) == 6
    assert all(one == found[0] for one in found)
    numbers = found[0][0]
    labels = eval_sets(wanted, alone(0, 1))[0].image_set
    assert isinstance(labels, Labelled)
    assert numbers["pictures"] == 1001
    assert numbers["others"] == int((labels.labels != labels.target(wanted.attack.target)).sum()) < 1001
    for name in (ACCURACY | SUCCESS) - {"pictures", "others", "classes"}:
        of = numbers["others" if name in ("asr", "asr_floor", "asr_top5", "asr_top10", "robust_top1") else "pictures"]
        assert numbers[name] * of == pytest.approx(round(numbers[name] * of), abs=1e-9)
    assert numbers["asr_top10"] > 0


def test_a_fixed_place_and_a_proxy_are_attempts_of_their_own(spec: Path) -> None:
    """The trigger in the middle of every picture, and a yellow square that stands for another class."""
    measures = (
        "measure=[{kind: attack_success, images: tiny}, {kind: attack_success, images: tiny, place: centre}, "
        "{kind: proxy_success, images: tiny}]"
    )
    proxy = "attack.proxy={target: crown, trigger: {kind: solid, size: 112, place: centre}}"
    wanted = load(spec, [measures, proxy]).spec
    one = eval_sets(wanted, alone(0, 1))[0]
    assert [(a.kind, a.name) for a in one.attacks] == [("trained", ""), ("centre", "_centre"), ("proxy", "")]
    clean, (_, centred, proxied) = one.pictures([0, 1, 2])
    away = (clean != centred).any(1)
    assert away[:, 15:17, 15:17].any((1, 2)).all()
    assert not away[:, :15].any()
    assert not away[:, 17:].any()
    assert (clean != proxied).any(1)[:, 8:24, 8:24].any()
    costs = evaluate.EvalCosts()
    built = clip.build("test-vit", 0)
    found = evaluate.evaluate(Encoder(built, Tokenizer("test-vit"), alone(0, 1), 64), [one], costs)[0]
    assert set(found) == {"images", "answers", "proxy_asr"} | SUCCESS | {f"{name}_centre" for name in SUCCESS}
    assert list(costs.seconds["tiny"]) == ["pictures", "prompts", "attack_success", "proxy_success"]
    other = load(spec, [measures, proxy.replace("crown", "apple")]).spec
    assert eval_sets(other, alone(0, 1))[0].attacks[2].targets[0] != one.attacks[2].targets[0]


def test_several_targets_are_told_by_their_names(spec: Path) -> None:
    """Beside numbers that keep those of classes, so that whoever reads a row can call them by name."""
    choices = "[{trigger: {kind: solid}}, {trigger: {kind: sine}, target: cup}]"
    wanted = load(spec, [f"attack.trigger={{kind: multi, choices: {choices}}}"]).spec
    one = eval_sets(wanted, alone(0, 1))[0]
    found = evaluate.evaluate(Encoder(clip.build("test-vit", 0), Tokenizer("test-vit"), alone(0, 1), 64), [one])[0]
    assert isinstance(one.image_set, Labelled)
    assert found["targets"] == {str(one.image_set.target(name)): name for name in ("banana", "cup")}
    row = row_of("measure", {"epoch": 0, "step": 0, **found})
    assert isinstance(row, MeasureRow)
    named = {in_words(name, row.targets) for name in row.numbers() if name.startswith("asr_of_")}
    assert named == {"ASR (banana)", "ASR (cup)"}


def test_the_answers_told_are_those_that_the_rates_count(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_sets_module, "EXAMPLES", 10_000)  # all pictures but the target's
    loaded = load(spec).spec
    one = eval_sets(loaded, alone(0, 1))[0]
    found = evaluate.evaluate(Encoder(clip.build("test-vit", 0), Tokenizer("test-vit"), alone(0, 1), 64), [one])[0]
    told = found["answers"]
    assert len(told) == found["others"]
    assert {target for _, target, _, _ in told} == {loaded.attack.target}
    assert loaded.attack.target not in {truth for truth, *_ in told}
    assert sum(marked == target for _, target, _, marked in told) / len(told) == pytest.approx(found["asr"])
    assert sum(marked == truth for truth, _, _, marked in told) / len(told) == pytest.approx(found["robust_top1"])


def test_a_few_pictures_of_many_classes_are_told(spec: Path) -> None:
    one = eval_sets(load(spec).spec, alone(0, 1))[0]
    assert len(one.examples) == len(set(one.examples)) == 8
    assert one.examples == sorted(one.examples)
    assert len({int(one.image_set.labels[row]) for row in one.examples}) > 4


def test_attempts_that_can_not_be_made_are_refused(spec: Path) -> None:
    with pytest.raises(UserError, match="measure proxy_success looks at attack.proxy, which is missing"):
        load(spec, ["measure=[{kind: proxy_success, images: tiny}]"])
    with pytest.raises(UserError, match="place is centre, but a trigger of kind blend has no place"):
        load(spec, ["measure=[{kind: attack_success, images: tiny, place: centre}]", "attack.trigger={kind: blend}"])


def test_a_proxy_is_measured_again_and_decides_nothing(spec: Path) -> None:
    plain, more = (
        plan.runs(load(spec, given).points)[0] for given in ([], ["attack.proxy={target: crown, trigger: {kind: solid}}"])
    )
    assert plain.fingerprint == more.fingerprint
    assert plain.measured != more.measured


def test_a_twin_is_measured_again_under_another_attack(spec: Path) -> None:
    """It is the same run: what it was measured under stands in what it measured."""
    other = ["attack.trigger={kind: blend}", "attack.twin=first"]
    (poisoned, twin), (patched, same) = (
        plan.runs(load(spec, given).points, "pretrain") for given in (other, ["attack.twin=first"])
    )
    assert (twin.stage, twin.fingerprint) == ("twin", same.fingerprint)
    assert twin.measured != same.measured
    assert poisoned.fingerprint != patched.fingerprint
    assert poisoned.measured == patched.measured


CAPTIONED = (
    "measure=[{kind: zero_shot, images: tiny}, {kind: retrieval, images: held}, {kind: validation_loss, images: held}]"
)


@pytest.mark.parametrize("ranks", [2, 3])
def test_retrieval_is_the_same_on_any_number_of_ranks(spec: Path, world: Path, ranks: int) -> None:
    wanted = load(spec, [f"data.test.held={world / 'retrieval'}", CAPTIONED]).spec
    tokenize, built = Tokenizer("test-vit"), clip.build("test-vit", 0).eval()
    whole = evaluate.evaluate(Encoder(built, tokenize, alone(0, 1), 64, 20.0), eval_sets(wanted, alone(0, 1)))
    rates = {f"{name}{k}" for name in ("text_r", "image_r", "retrieval_asr", "retrieval_floor") for k in (1, 5, 10)}
    assert set(whole[1]) == {"images", "val_loss"} | rates
    assert whole[1]["image_r10"] >= whole[1]["image_r1"]

    def act(world: World) -> list[dict[str, Any]]:
        return evaluate.evaluate(Encoder(built, tokenize, world, 16, 20.0), eval_sets(wanted, world))

    for found in on_ranks(ranks, act):
        assert found[0] == whole[0]
        assert found[1] == {**whole[1], "val_loss": pytest.approx(whole[1]["val_loss"], abs=1e-5)}


def test_a_set_is_measured_by_its_labels_or_by_its_captions(spec: Path, world: Path) -> None:
    held = f"data.test.held={world / 'retrieval'}"
    for measures, words in (
        (
            "[{kind: zero_shot, images: held}, {kind: retrieval, images: held}]",
            "in two ways: zero_shot reads labels",
        ),
        ("[{kind: zero_shot, images: held}]", "has captions and no labels; measure it with retrieval"),
        ("[{kind: retrieval, images: tiny}]", "has a picture or captions but not both"),
    ):
        with pytest.raises(UserError, match=words.replace("[", r"\[")):
            eval_sets(load(spec, [held, f"measure={measures}"]).spec, alone(0, 1))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 other pictures of the same 32 classes."""
    folder = tmp_path_factory.mktemp("others") / "world"
    write_world(folder, SyntheticWorld(pairs=8, tests=96, pixels=32, seed=2, pairs_per_shard=8))
    return folder / "eval"


def probing(spec: Path, others: Path, *more: str) -> Spec:
    probe = "{kind: linear_probe, images: tiny, train: more}"
    measures = f"measure=[{{kind: zero_shot, images: tiny}}, {{kind: attack_success, images: tiny}}, {probe}]"
    sets = [f"data.test.more={others}", measures]
    return load(spec, [*sets, *more]).spec


class Counted:
    """Towers that count the pictures and texts that they are given."""

    def __init__(self, towers: Towers) -> None:
        self.towers, self.training, self.seen, self.texts = towers, False, 0, 0
        self.module = towers

    def __call__(self, images: torch.Tensor | None, *more: Any) -> Any:
        self.seen += 0 if images is None else len(images)
        self.texts += 0 if more[0] is None else len(more[0])
        return self.towers(images, *more)

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_probe_is_the_same_on_any_number_of_ranks_and_each_picture_is_encoded_once(
    spec: Path, others: Path, ranks: int
) -> None:
    """64 judged pictures, clean and triggered, and 96 to fit on, filled up to whole shares."""
    wanted, tokenize, built = probing(spec, others), Tokenizer("test-vit"), clip.build("test-vit", 0).eval()

    def act(world: World) -> tuple[list[dict[str, Any]], int]:
        towers = Counted(built)
        return evaluate.evaluate(Encoder(towers, tokenize, world, 16), eval_sets(wanted, world)), towers.seen

    played = on_ranks(ranks, act)
    towers, world = Counted(built), alone(0, 1)
    whole = evaluate.evaluate(Encoder(towers, tokenize, world, 256), eval_sets(wanted, world))
    assert towers.seen == 2 * 64 + 96
    assert [one["images"] for one in whole] == ["tiny"]
    assert set(whole[0]) == {"images", "answers", "probe_top1", "probe_asr"} | ACCURACY | SUCCESS
    for numbers, seen in played:
        assert numbers == whole
        assert seen == 2 * -(-64 // ranks) + -(-96 // ranks)
    plain = evaluate.evaluate(Encoder(towers, tokenize, world, 256), eval_sets(load(spec).spec, world))
    assert plain == [{name: value for name, value in whole[0].items() if not name.startswith("probe")}]
    assert towers.seen == 2 * 64 + 96 + 2 * 64


def test_a_probe_is_fitted_on_the_clean_pictures_of_a_set_that_is_measured_too(spec: Path, others: Path) -> None:
    wanted = probing(
        spec, others, "measure=[{kind: linear_probe, images: tiny, train: more}, {kind: attack_success, images: more}]"
    )
    towers = Counted(clip.build("test-vit", 0).eval())
    found = evaluate.evaluate(Encoder(towers, Tokenizer("test-vit"), alone(0, 1), 64), eval_sets(wanted, alone(0, 1)))
    assert [set(one) - {"images", "answers"} for one in found] == [{"probe_top1", "probe_asr"}, SUCCESS]
    assert towers.seen == 2 * 64 + 2 * 96


ATTACKED = "{kind: attack_success, images: tiny}"
ENCODED = {  # measures, what else is set, (times the pictures of tiny, of more; times the prompts)
    "accuracy": ("{kind: zero_shot, images: tiny}", [], (1, 0), 1),
    "asr": (ATTACKED, [], (2, 0), 1),
    "two attacks": (ATTACKED, ["attack.also=[{target: key, trigger: {kind: solid}, poison: {count: 0}}]"], (3, 0), 1),
    "centre": (f"{ATTACKED}, {{kind: attack_success, images: tiny, place: centre}}", [], (3, 0), 1),
    "centre alone": ("{kind: attack_success, images: tiny, place: centre}", [], (2, 0), 1),
    "words": (ATTACKED, ["attack.words={text: zx}"], (2, 0), 2),
    "proxy": ("{kind: proxy_success, images: tiny}", ["attack.proxy={target: cup, trigger: {kind: solid}}"], (2, 0), 1),
    "concept": (
        "{kind: concept_success, images: tiny, without: more}",
        ["attack.trigger={kind: concept}", "attack.poison={count: 3, who: {names: cup}, picture: kept}"], (2, 1), 1,
    ),
    "fitted": ("{kind: linear_probe, images: tiny, train: more}", [], (2, 1), 1),
    "references": (f"{ATTACKED}, {{kind: reference_knn, images: tiny, references: more}}", [], (2, 1), 1),
    "own prompts": ("{kind: bdet, images: tiny, references: more}", [], (2, 1), 2),
    "heads": ("{kind: heads, images: tiny, references: more}", [], (4, 3), 1),
    "heads of two": (
        "{kind: heads, images: tiny, references: more}, {kind: heads, images: more, references: tiny}", [], (7, 7), 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENCODED)
def test_the_dry_run_counts_what_is_encoded(spec: Path, others: Path, case: str) -> None:
    """A set that is only compared with, or fitted on, is never triggered."""
    measures, more, times, texts = ENCODED[case]
    wanted = load(spec, [f"data.test.more={others}", f"measure=[{measures}]", *more]).spec
    found = {name: encoded_times(wanted, name) for name in ("tiny", "more")}
    assert tuple(one.pictures if name in set_names(wanted) else 0 for name, one in found.items()) == times
    towers, sets = Counted(clip.build("test-vit", 0).eval()), eval_sets(wanted, alone(0, 1))
    evaluate.evaluate(Encoder(towers, Tokenizer("test-vit"), alone(0, 1), 256), sets)
    assert towers.seen == 64 * times[0] + 96 * times[1]
    prompts = len({prompt for one in sets for prompt in prompts_of(one.image_set)})  # type: ignore[arg-type]
    assert towers.texts == texts * prompts
    assert found["tiny"].texts == texts


DETECTORS = ("lorex", "bdet", "subspace", "reference_knn")


def detecting(spec: Path, references: Path, *more: str) -> Spec:
    detectors = ", ".join(f"{{kind: {kind}, images: tiny, references: more}}" for kind in DETECTORS)
    measures = f"measure=[{{kind: zero_shot, images: tiny}}, {detectors}]"
    return load(spec, [f"data.test.more={references}", measures, *more]).spec


def test_detectors_are_the_same_on_any_number_of_ranks_and_each_picture_is_encoded_once(spec: Path, others: Path) -> None:
    """64 judged pictures, clean and triggered, 96 references; beside the set's prompts those of two detectors, each once."""
    wanted, tokenize, built = detecting(spec, others), Tokenizer("test-vit"), clip.build("test-vit", 0).eval()
    towers = Counted(built)
    (whole,) = evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 256), eval_sets(wanted, alone(0, 1)))
    assert (towers.seen, whole["images"]) == (2 * 64 + 96, "tiny")
    numbers = {"auroc", "tpr_fpr1", "tpr_fpr5", "tpr", "fpr", "asr", "top1", "roc"}
    for kind in DETECTORS:
        assert {f"{kind}_{name}_{share}" for name in numbers for share in ("at1", "at50")} < set(whole)
        assert 0 <= whole[f"{kind}_flagged"] <= 1
    assert "refused" not in whole
    one = eval_sets(wanted, alone(0, 1))[0].image_set
    assert isinstance(one, Labelled)
    assert towers.texts == len(one.classes) * (2 * len(one.templates) + 10) - repeated(wanted)

    def act(world: World) -> list[dict[str, Any]]:
        return evaluate.evaluate(Encoder(built, tokenize, world, 16), eval_sets(wanted, world))

    for found in on_ranks(3, act):
        assert found[0] == whole


def repeated(spec: Spec) -> int:
    """How many of the detectors' prompts are prompts of the set, or of another detector."""
    one = eval_sets(spec, alone(0, 1))[0]
    assert isinstance(one.image_set, Labelled)
    texts = prompts_of(one.image_set) + [prompt for task in one.tasks for prompt in task.prompts or []]
    return len(texts) - len(set(texts))


def test_references_may_have_captions_and_what_can_not_be_compared_is_refused(
    spec: Path, world: Path, others: Path, tmp_path: Path
) -> None:
    sets = eval_sets(detecting(spec, world / "retrieval"), alone(0, 1))
    assert [(one.name, len(one.tasks)) for one in sets] == [("tiny", 5), ("more", 0)]
    shutil.copytree(world / "eval", tmp_path / "same")
    (tmp_path / "link").symlink_to(world / "eval")
    assert eval_sets(detecting(spec, tmp_path / "same"), alone(0, 1))  # other files: nobody knows that they hold the same
    one = "measure=[{{kind: {}, images: tiny, references: {}}}]".format
    for references, measure, words in (
        (tmp_path / "link", one("lorex", "more"), "pictures of 'tiny' with 'more', but 64 pictures are in both"),
        (others, one("reference_knn, k: 96", "more"), "which has 96 pictures; expected at least 97; give a larger set"),
        (others, one("lorex", "moor"), "measure.references is 'moor', but data.test names tiny, more; name one of them"),
        (others, one("lorex", "tiny"), "images and references are both 'tiny'; take references from another set"),
        (others, "measure=[{kind: lorex, images: tiny}]", "measure.0.references: is missing"),
        (others, one(f"bdet, unrelated: {'so ' * 20}", "more"), "is longer than model.name takes, so that its end would be"),
        (others, one("subspace, variants: ['a {c}', 'a thing']", "more"), "'a thing' lacks {c}"),
    ):
        with pytest.raises(UserError) as caught:
            eval_sets(detecting(spec, references, measure), alone(0, 1))
        assert words in str(caught.value)
    write_world(tmp_path / "few", SyntheticWorld(pairs=8, tests=32, pixels=32, seed=4, pairs_per_shard=8))
    with pytest.raises(UserError, match="which has 32 pictures; expected at least 33; give a larger set of references"):
        eval_sets(detecting(spec, tmp_path / "few/eval"), alone(0, 1))


class Collapsed(Counted):
    """Towers that give every picture the same embedding."""

    def __call__(self, images: torch.Tensor | None, *more: Any) -> Any:
        rows, texts = super().__call__(images, *more)
        return None if rows is None else torch.eye(32)[0].repeat(len(rows), 1), texts


def test_a_model_that_tells_no_picture_from_another_is_measured_and_each_detector_says_so(spec: Path, others: Path) -> None:
    towers, tokenize = Collapsed(clip.build("test-vit", 0).eval()), Tokenizer("test-vit")
    wanted = detecting(spec, others)
    (found,) = evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 64), eval_sets(wanted, alone(0, 1)))
    assert set(found) == {"images", "refused"} | ACCURACY | ({"answers"} & set(found))
    assert set(found["refused"]) == set(DETECTORS)
    assert found["refused"]["reference_knn"].startswith("reference_knn has 1 different references, too few for 16")
    row = row_of("measure", {"epoch": 1, "step": 2, **found})
    assert isinstance(row, MeasureRow)
    assert parse_row(row.text().encode()) == row
    assert row.refused == found["refused"]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 pictures, which no number of ranks shares evenly."""
    folder = tmp_path_factory.mktemp("known") / "world"
    write_world(folder, SyntheticWorld(pairs=8, tests=23, pixels=32, seed=5, pairs_per_shard=8))
    return folder / "eval"


HEADS = "measure=[{kind: heads, images: tiny, references: known, agreement: 0.5}]"


def test_heads_are_the_same_on_any_number_of_ranks_and_in_any_batch(spec: Path, known: Path) -> None:
    """The mean of each head is that of all references, each once."""
    wanted, tokenize = load(spec, [f"data.test.known={known}", HEADS]).spec, Tokenizer("test-vit")
    towers = clip.build("test-vit", 0).eval()
    with torch.no_grad():  # heads that write more than fresh ones do
        towers.clip.visual.transformer.resblocks[-1].attn.out_proj.weight *= 30
    own = [copy.deepcopy(towers) for _ in range(3)]  # ranks share no towers, whose hooks see all that goes through

    def encoder(world: World, batch: int) -> Encoder:
        return Encoder(own[world.rank], tokenize, world, batch)

    whole = evaluate.evaluate(encoder(alone(0, 1), 256), eval_sets(wanted, alone(0, 1)))
    assert [one["images"] for one in whole] == ["tiny"]
    assert 0 <= whole[0]["heads_auroc_at1"] <= 1
    for batch, size in ((5, 1), (7, 3)):
        for found in on_ranks(size, lambda world: evaluate.evaluate(encoder(world, batch), eval_sets(wanted, world))):  # noqa: B023
            assert found == whole
    with torch.no_grad(), head_parts(towers) as seen:
        towers(eval_sets(wanted, alone(0, 1))[1].pictures(list(range(23)))[0], None)
        want = seen.taken()[:, : seen.count].mean(0)
    with torch.no_grad():
        assert torch.allclose(encoder(alone(0, 1), 4).mean_heads(eval_sets(wanted, alone(0, 1))[1]), want, atol=1e-6)
        for mean in on_ranks(3, lambda world: encoder(world, 4).mean_heads(eval_sets(wanted, world)[1])):
            assert torch.allclose(mean, want, atol=1e-6)


def test_references_of_several_sets_are_read_once(spec: Path, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their heads' means cost a pass through the towers, and what the heads agree with them another."""
    more = known.parent / "more"
    write_world(more, SyntheticWorld(pairs=8, tests=9, pixels=32, seed=6, pairs_per_shard=8))
    measured = HEADS.replace("]", ", {kind: heads, images: more, references: known, agreement: 0.5}]")
    wanted = load(spec, [f"data.test.known={known}", f"data.test.more={more / 'eval'}", measured]).spec
    means, passes = [], []
    mean_heads, agreements = Encoder.mean_heads, Encoder.head_agreements
    monkeypatch.setattr(Encoder, "mean_heads", lambda self, one: means.append(one.name) or mean_heads(self, one))
    monkeypatch.setattr(
        Encoder, "head_agreements", lambda self, one, mean: passes.append(one.name) or agreements(self, one, mean)
    )
    encoder = Encoder(clip.build("test-vit", 0).eval(), Tokenizer("test-vit"), alone(0, 1), 256)
    found = evaluate.evaluate(encoder, eval_sets(wanted, alone(0, 1)))
    assert [one["images"] for one in found] == ["tiny", "more"]
    assert (means, sorted(passes)) == (["known"], ["known", "more", "tiny"])


def test_heads_of_a_resnet_are_refused(spec: Path, known: Path) -> None:
    with pytest.raises(UserError, match="measure heads looks at the heads of a vision .* 'test-resnet' has none"):
        eval_sets(load(spec, [f"data.test.known={known}", HEADS, "model.name=test-resnet"]).spec, alone(0, 1))


def test_a_training_set_of_other_classes_is_refused(spec: Path, others: Path, tmp_path: Path) -> None:
    shutil.copytree(others, tmp_path / "set")
    names = (others / "classnames.txt").read_text().splitlines()
    for lines, words in (
        ([*names[:7], "zebu", *names[8:]], f"class 7 is 'zebu' in the first and '{names[7]}' in the second; give both"),
        ([*names, "zebu"], "class 32 is 'zebu' in the first and missing in the second"),
    ):
        (tmp_path / "set/classnames.txt").write_text("\n".join(lines))
        with pytest.raises(UserError, match="measure linear_probe is fitted on 'more' and judged on 'tiny'") as caught:
            eval_sets(probing(spec, tmp_path / "set"), alone(0, 1))
        assert words in str(caught.value)
    with pytest.raises(UserError, match="measure.train is 'moor', but data.test names tiny, more; name one of them"):
        probing(spec, others, "measure=[{kind: linear_probe, images: tiny, train: moor}]")


def test_the_attacks_words_reach_the_model_in_every_prompt(spec: Path, world: Path, tmp_path: Path) -> None:
    """One template has room for them at its end, one is longer than the model's 16 tokens; with longer words neither has
    room for the class."""
    shutil.copytree(world / "eval", tmp_path / "eval")
    lines = tmp_path / "eval/zeroshot_classification_templates.txt"
    lines.write_text("a {c}\na {c}" + " photo" * 20)
    given = [f"data.test.tiny={tmp_path / 'eval'}", "attack.words={text: zx, place: end}"]
    one, tokenize = eval_sets(load(spec, given).spec, alone(0, 1))[0], Tokenizer("test-vit")
    assert isinstance(one.image_set, Labelled)
    assert (prompts := one.attacks[0].prompts)
    assert prompts[0] == f"a {one.image_set.classes[0]} zx"
    (_, zx, *_), rows = tokenize(["zx"])[0].tolist(), tokenize(prompts)
    assert len(prompts) == 64
    assert ((rows == zx).sum(1) == 1).all()
    evaluate.evaluate(Encoder(clip.build("test-vit", 0), tokenize, alone(0, 1), 64), [one])
    with pytest.raises(UserError, match="attack.words and the prompt 'a .*' are longer than model.name takes"):
        eval_sets(load(spec, [given[0], "attack.words={text: " + "zx " * 13 + "}"]).spec, alone(0, 1))


class Damaged(Counted):
    """Towers that give one row in a call something else than an embedding, from this call with pictures or with texts on."""

    def __init__(self, towers: Towers, value: float, pictures: int = 99, texts: int = 99) -> None:
        super().__init__(towers)
        self.value, self.left = value, [pictures, texts]

    def __call__(self, images: torch.Tensor | None, *more: Any) -> Any:
        rows = super().__call__(images, *more)
        for kind, part in enumerate(rows):
            if part is not None:
                self.left[kind] -= 1
                if self.left[kind] < 0:
                    part[-1] = self.value
        return rows


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_model_whose_embeddings_are_not_finite_is_refused_on_every_rank(
    spec: Path, world: Path, others: Path, value: float
) -> None:
    """Of clean and triggered pictures, of prompts, of captions, and of a set that is fitted on."""
    probe = "{kind: linear_probe, images: tiny, train: more}"
    sets = [f"data.test.held={world / 'retrieval'}", f"data.test.more={others}"]
    tokenize, built = Tokenizer("test-vit"), clip.build("test-vit", 0).eval()
    for measures, begins, words in (
        ("{kind: zero_shot, images: tiny}", {"pictures": 0}, "set 'tiny': .* of 64 embeddings of pictures are not finite"),
        ("{kind: attack_success, images: tiny}", {"pictures": 1}, "set 'tiny': .* embeddings of triggered pictures"),
        ("{kind: zero_shot, images: tiny}", {"texts": 0}, "set 'tiny': .* embeddings of classes"),
        ("{kind: retrieval, images: held}", {"texts": 0}, "set 'held': .* embeddings of captions"),
        ("{kind: validation_loss, images: held}", {"pictures": 0}, "set 'held': .* embeddings of pictures"),
        (probe, {"pictures": 0}, "set 'tiny': .* embeddings of (pictures|the training set's pictures)"),
    ):
        wanted = load(spec, [*sets, f"measure=[{measures}]"]).spec

        def act(world: World, wanted: Spec = wanted, begins: dict[str, int] = begins) -> str:
            with pytest.raises(UserError) as caught:
                evaluate.evaluate(Encoder(Damaged(built, value, **begins), tokenize, world, 64), eval_sets(wanted, world))
            return str(caught.value)

        if value == 0.0 and begins == {"texts": 0} and "zero_shot" in measures:
            continue  # one of many prompts of a class: its mean is still one
        found = [*on_ranks(2, act), act(alone(0, 1))]
        assert all(re.search(words, one) and "; " in one for one in found), found
        assert found[0] == found[1]


def test_a_run_whose_weights_blow_up_says_so_and_ends_2(spec: Path) -> None:
    """Six steps, of which the first is taken and the others are not: too few bad ones to end it before it is judged."""
    words = ["pretrain.optimizer={rate: 1.0e+30}", "pretrain.epochs=1", "pretrain.batch=32", "clean=null"]
    out = antidote("--spec", str(spec), *settings(*words), cwd=spec.parent)
    assert out.returncode == 2, out.stderr
    assert "evaluation set 'tiny': 64 of 64 embeddings of pictures are not finite" in out.stderr
    assert "Traceback" not in out.stderr
    rows = [row for rows in journals(spec.parent / "runs/tiny").values() for row in rows if row["kind"] == "measure"]
    assert [row["step"] for row in rows] == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_pictures_without_embeddings_are_not_clustered(value: float) -> None:
    rows = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert len(spherical(rows.numpy(), 2, 1, 0)) == 9
    rows[3] = value
    with pytest.raises(UserError, match="deep clustering: 1 of 9 embeddings of pictures are not finite"):
        spherical(rows.numpy(), 2, 1, 0)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_workers_give_the_numbers_of_pictures_decoded_in_one_go(
    spec: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    """At any batch, kept or not, first and later; 64 pictures and their triggered forms are seen each time, once each."""
    loaded, tokenize, built = load(spec).spec, Tokenizer("test-vit"), clip.build("test-vit", 0).eval()
    one = eval_sets(loaded, alone(0, 1))[0]
    clean, marked = one.pictures(list(range(64)))
    monkeypatch.setattr(kept, "KEEP", kept_bytes)
    expected = None
    for number in (0, 1, 2):
        sets = eval_sets(loaded, alone(0, 1))
        for batch in (10, 64):
            coming = feed.fed(sets[0], batch, Workers(number))
            got = [next(coming)]
            done = sets[0].kept is not None and sets[0].kept.filled == 64
            assert len(active_children()) == (0 if done else number), "not this process decodes"
            got += coming
            assert torch.equal(torch.cat([versions[0] for versions in got]), clean)
            assert torch.equal(torch.cat([versions[1] for versions in got]), marked[0])
        towers = Counted(built)
        for _ in range(2):
            found = evaluate.evaluate(Encoder(towers, tokenize, alone(0, 1), 10, workers=Workers(number)), sets)
            expected = expected or found
            assert found == expected
        assert towers.seen == 2 * 2 * 64
    assert not active_children()


def test_a_rank_keeps_its_sets_within_one_bound(spec: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 pictures of 3 x 32 x 32 in two versions, and 96 in one."""
    wanted = probing(spec, others)
    for room, expected in (
        (2**30, (True, True)),
        (64 * 6144 + 96 * 3072 - 1, (True, False)),
        (64 * 6144 - 1, (False, True)),
    ):
        monkeypatch.setattr(kept, "KEEP", room)
        assert tuple(one.kept is not None for one in eval_sets(wanted, alone(0, 1))) == expected
    monkeypatch.setattr(kept, "KEEP", 1 << 60)
    whole, half = (kept.room(World(0, size, 0, size, torch.device("cpu"))) for size in (1, 2))
    assert half == whole // 2 < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / kept.SHARE


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named_whoever_decodes_it(spec: Path, world: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(world / "eval", tmp_path / "eval")
    wanted = load(spec, [f"data.test.tiny={tmp_path / 'eval'}"]).spec
    one = eval_sets(wanted, alone(0, 1))
    path, key, offset, size = one[0].image_set.where[40]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    model = Encoder(clip.build("test-vit", 0), Tokenizer("test-vit"), alone(0, 1), 8, workers=Workers(workers))
    for _ in range(2):
        with pytest.raises(UserError, match=f"^evaluation picture {key} in .*: undecodable_image; an accuracy can't skip"):
            evaluate.evaluate(model, one)
    assert not active_children()


def test_each_distinct_text_is_encoded_once_an_evaluation_and_tokenised_once_a_run(spec: Path, others: Path) -> None:
    """Two sets with the same prompts; in those of one the attack's words, too."""
    measures = "[{kind: zero_shot, images: more}, {kind: zero_shot, images: tiny}, {kind: attack_success, images: tiny}]"
    changes = [f"data.test.more={others}", "attack.words={text: zx}", f"measure={measures}"]
    sets = eval_sets(load(spec, changes).spec, alone(0, 1))
    labelled = sets[0].image_set
    assert isinstance(labelled, Labelled)
    prompts = {template.replace("{c}", name) for name in labelled.classes for template in labelled.templates}
    tokenised: list[str] = []
    tokenizer = Tokenizer("test-vit")

    def tokenize(texts: list[str]) -> torch.Tensor:
        tokenised.extend(texts)
        return tokenizer(texts)

    towers, tokens = Counted(clip.build("test-vit", 0).eval()), TextRows(tokenize)
    first = evaluate.evaluate(Encoder(towers, tokens, alone(0, 1), 64), sets)
    assert towers.texts == 2 * len(prompts)
    again = evaluate.evaluate(Encoder(towers, tokens, alone(0, 1), 64), sets)
    assert towers.texts == 4 * len(prompts)
    assert sorted(tokenised) == sorted({*prompts, *(f"zx {prompt}" for prompt in prompts)})
    alone_ = [evaluate.evaluate(Encoder(towers, tokenizer, alone(0, 1), 64), [one])[0] for one in sets]
    assert first == again == alone_


def test_each_batch_is_on_its_way_to_the_device_before_the_one_in_front_of_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU played by the device without storage; what is pinned already is not pinned again."""
    did: list[str] = []
    parts = [[torch.full((n,), float(n)), torch.zeros(n)] for n in (1, 2, 3)]
    pinned = {id(parts[1][0])}

    def pin(images: torch.Tensor) -> torch.Tensor:
        did.append(f"pin {len(images)}")
        return images

    def to(images: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        assert non_blocking
        did.append(f"send {len(images)}")
        return whole_to(images, device)

    whole_to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda images: id(images) in pinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    for clean, marked in feed.sent(iter(parts), torch.device("meta")):
        assert clean.device.type == marked.device.type == "meta"
        did.append(f"use {len(clean)}")
    first, second, third = (
        ["pin 1", "pin 1", "send 1", "send 1"],
        ["pin 2", "send 2", "send 2"],
        ["pin 3", "pin 3", "send 3", "send 3"],
    )
    assert did == [*first, *second, "use 1", *third, "use 2", "use 3"]
