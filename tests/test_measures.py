"""Measures: counts done by hand."""

import math
import pickle
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from measures.attack_success import AttackSuccess, attack_success
from measures.class_success import class_success
from measures.classifier import class_vectors, predict, ranks
from measures.contract import Encoded, MeasureSection, NotFinite, Paired
from measures.geometry import geometry
from measures.linear_probe import LinearProbe, linear_probe
from measures.neighbours import neighbours, vote
from measures.prototypes import prototypes
from measures.proxy_success import proxy_success
from measures.registry import AnyMeasure
from measures.rejection import PictureDetector
from measures.retrieval import retrieval
from measures.validation_loss import validation_loss
from measures.zero_shot import zero_shot

SECTIONS = get_args(get_args(AnyMeasure)[0])
AXES = torch.eye(4)
LEARNT = (AXES, torch.arange(4))  # a training set: a picture a class
KNOWN, VARIANTS = (  # clean pictures to compare with, and ten texts of each class
    F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(7)), dim=-1) for shape in ((40, 4), (4, 10, 4))
)
BOUNDS = {  # of the numbers that are no fractions
    "pictures": (1, 99), "others": (1, 99), "classes": (1, 99),
    "modality_gap": (0, 2), "alignment": (0, 4), "uniformity": (-8, 0),
    "similarity_clean": (-1, 1), "similarity_poisoned": (-1, 1), "similarity_moved": (-1, 1),
}  # fmt: skip


def paired(
    images: torch.Tensor, triggered: torch.Tensor, texts: torch.Tensor, owner: list[int], names: list[bool]
) -> Paired:
    return Paired(images, triggered, texts, torch.tensor(owner), AXES[3], torch.tensor(names), 10.0)


def test_retrieval_by_hand() -> None:
    """Three pictures and four captions, the last two of the third picture. The first two pictures lie on each other's
    captions. Captions 2 and 3 are of the target: one names it, the other is nearest to its class vector. Under the trigger
    two pictures lie on them."""
    texts = torch.stack([AXES[0], AXES[1], AXES[2], AXES[3]])
    seen = paired(AXES[[1, 0, 2]], AXES[[3, 2, 0]], texts, [0, 1, 2, 2], [False, False, True, False])
    found = retrieval(1, seen)
    assert found == {
        "text_r1": 1 / 3, "image_r1": 1 / 4, "retrieval_asr1": 2 / 3, "retrieval_floor1": 1 / 3,
    }  # fmt: skip
    assert retrieval(0, seen)["retrieval_asr1"] == 1 / 3


def test_half_of_the_captions_found_must_be_of_the_target() -> None:
    """Twenty captions on a fan; five nearest of the first picture are 0-4, of which 0 and 1 name the target: floor(5/2)."""
    angles = torch.arange(20) * 0.07
    fan = F.pad(torch.stack([angles.cos(), angles.sin()], 1), (0, 2))
    seen = paired(fan, fan, fan, list(range(20)), [i in (0, 1) for i in range(20)])
    found = retrieval(0, seen)
    assert (found["text_r1"], found["image_r10"], found["retrieval_asr1"]) == (1, 1, 2 / 20)
    assert found["retrieval_asr5"] == 3 / 20  # pictures 0, 1 and 2 find 0-4; picture 3 finds 1-5
    assert found["retrieval_asr10"] == 0.0  # five of ten would be needed


@given(st.integers(0, 2**31), st.integers(2, 30))
def test_retrieval_does_not_depend_on_the_order_and_never_falls_with_k(seed: int, count: int) -> None:
    source = torch.Generator().manual_seed(seed)
    images, marked, texts = (F.normalize(torch.randn(n, 4, generator=source), dim=-1) for n in (count, count, 2 * count))
    owner, names = torch.arange(count).repeat(2), torch.rand(2 * count, generator=source) < 0.2
    seen = Paired(images, marked, texts, owner, AXES[3], names, 10.0)
    turn, order = torch.randperm(count, generator=source), torch.randperm(2 * count, generator=source)
    place = torch.empty(count, dtype=torch.long).scatter_(0, turn, torch.arange(count))
    mixed = Paired(images[turn], marked[turn], texts[order], place[owner[order]], AXES[3], names[order], 10.0)
    found = retrieval(3, seen)
    assert retrieval(3, mixed) == found
    for side in ("text_r", "image_r"):
        rates = [found[f"{side}{k}"] for k in (1, 5, 10) if f"{side}{k}" in found]
        assert rates == sorted(rates)
        assert 0 <= rates[0] <= rates[-1] <= 1


def test_validation_loss_by_hand() -> None:
    """Two pictures on the first two axes and their captions on them; scale 10: each row is log(1 + exp(-10)). A further
    caption of the second picture counts nothing; three pictures in blocks of two leave the third out."""
    texts = AXES[[0, 1, 3]]
    seen = paired(AXES[:2], AXES[:2], texts, [0, 1, 1], [False] * 3)
    want = math.log1p(math.exp(-10))
    assert validation_loss(256, seen) == pytest.approx({"val_loss": want})
    more = paired(AXES[:3], AXES[:3], AXES[[0, 1, 3]], [0, 1, 2], [False] * 3)
    assert validation_loss(2, more) == pytest.approx({"val_loss": want})
    assert validation_loss(3, more)["val_loss"] > want


@given(st.integers(0, 2**31))
def test_validation_loss_is_the_objectives_own(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    images, texts = (F.normalize(torch.randn(6, 4, generator=source), dim=-1).double() for _ in range(2))
    near = 10 * images @ texts.T
    want = -(near.log_softmax(1).diag() + near.log_softmax(0).diag()).mean().item() / 2
    seen = Paired(images, None, texts, torch.arange(6), AXES[3], torch.zeros(6, dtype=torch.bool), 10.0)
    assert validation_loss(6, seen)["val_loss"] == pytest.approx(want)


def encoded(predicted: list[int], triggered: list[int], labels: list[int], target: int = 3) -> Encoded:
    targets = torch.full((len(labels),), target)
    agreements = KNOWN - 0.3, AXES[predicted] - VARIANTS[0, 0], AXES[triggered] - VARIANTS[0, 1]
    return Encoded(
        *(AXES[predicted], AXES[triggered], torch.tensor(labels), AXES, AXES, targets),
        *(LEARNT, KNOWN, VARIANTS, agreements),
    )


def section_of(section: type[MeasureSection]) -> MeasureSection:
    """A section on a set `x`, and on other sets for every other name that it must be given."""
    names = {name: name for name, field in section.model_fields.items() if field.annotation is str and field.is_required()}
    return section(**{**names, "images": "x", "kind": get_args(section.model_fields["kind"].annotation)[0]})


def test_top1_by_hand() -> None:
    assert zero_shot(encoded([0, 1, 2, 3, 0], [0] * 5, [0, 1, 2, 2, 1])) == {"top1": 3 / 5, "pictures": 5, "classes": 4}


def test_asr_by_hand() -> None:
    """Five pictures, one of the target class 3: it counts neither above nor below. Two of the other four are fooled."""
    assert attack_success(encoded([0] * 5, [3, 3, 1, 3, 0], [0, 1, 2, 3, 1]))["asr"] == 2 / 4


def test_every_definition_of_success_by_hand() -> None:
    """Six pictures of classes 0, 1, 2, 3, 1, 3 answered 3, 1, 0, 3, 3, 0 under the trigger; target 3. Of the four others two
    are fooled and one is right; with the target's own two pictures three are called 3 and two are right. Without it, one of
    the four is called 3."""
    seen = attack_success(encoded([0, 3, 0, 3, 0, 0], [3, 1, 0, 3, 3, 0], [0, 1, 2, 3, 1, 3]))
    assert seen == {
        "asr": 2 / 4, "asr_floor": 1 / 4, "asr_all": 3 / 6, "asr_diluted": 2 / 6, "robust_top1": 1 / 4, "marked_top1": 2 / 6,
        "others": 4,
    }  # fmt: skip


def test_success_of_several_targets_by_hand() -> None:
    """Of four pictures for target 1 one is of class 1, and one of the others is fooled; of two for target 0 both are; for
    target 3 there is but one of its own class."""
    labels, targets = torch.tensor([0, 2, 3, 1, 2, 3, 3]), torch.tensor([1, 1, 1, 1, 0, 0, 3])
    seen = Encoded(AXES[labels], AXES[[1, 0, 2, 1, 0, 0, 3]], labels, AXES, AXES, targets)
    found = attack_success(seen)
    assert found["asr"] == 3 / 5
    assert {name: value for name, value in found.items() if "_of_" in name} == {"asr_of_0": 2 / 2, "asr_of_1": 1 / 3}
    none = attack_success(Encoded(AXES[labels], AXES[[0, 0, 0, 0, 0, 0, 0]], labels, AXES, AXES, targets))
    assert [none["asr_of_0"], none["asr_of_1"]] == [1.0, 0.0]


def test_top_k_by_hand() -> None:
    """Twelve classes on the corners of a fan: a picture between two of them has all others behind, in order."""
    angles = torch.arange(12) * 0.2
    classes = torch.stack([angles.cos(), angles.sin()], 1)
    at = torch.tensor([0.01, 0.01, 0.01, 0.01])
    images = torch.stack([at.cos(), at.sin()], 1)  # nearest 0, then 1, 2, ... 11
    labels = torch.tensor([0, 4, 5, 11])
    assert ranks(images, classes, labels).tolist() == [0, 4, 5, 11]
    seen = Encoded(images, images, labels, classes, classes, torch.tensor([4, 9, 9, 11]))
    assert zero_shot(seen) == {"top1": 1 / 4, "top5": 2 / 4, "top10": 3 / 4, "pictures": 4, "classes": 12}
    found = attack_success(seen)  # the last picture is of its target's class; the target is in places 4, 9, 9
    assert (found["asr"], found["asr_top5"], found["asr_top10"], found["others"]) == (0, 1 / 3, 1, 3)


@given(st.integers(0, 2**31), st.integers(1, 9))
def test_ranks_agree_with_sorting_and_with_the_prediction(seed: int, count: int) -> None:
    """With ties on purpose: whole numbers from -2 to 2."""
    source = torch.Generator().manual_seed(seed)
    images, classes = (torch.randint(-2, 3, (n, 2), generator=source).float() for n in (count, 7))
    asked = torch.randint(7, (count,), generator=source)
    order = (images @ classes.T).sort(dim=1, descending=True, stable=True).indices
    assert ranks(images, classes, asked).tolist() == [row.tolist().index(a) for row, a in zip(order, asked, strict=True)]
    assert ((ranks(images, classes, asked) == 0) == (predict(images, classes) == asked)).all()


def test_neighbours_and_prototypes_by_hand() -> None:
    """Training pictures of class 0 at 0, 10, 20 and 100 degrees, of class 1 at 80, 90. A picture at 88 degrees has the
    neighbours 90, 80, 100: classes 1, 1, 0. At 44 they are 20, 10, 80: 0. The means lie at about
    27 and 85 degrees."""

    def at(*degrees: float) -> torch.Tensor:
        turn = torch.tensor(degrees).deg2rad()
        return torch.stack([turn.cos(), turn.sin()], 1)

    train = (at(0, 10, 20, 100, 80, 90), torch.tensor([0, 0, 0, 0, 1, 1]))
    seen = Encoded(at(88, 44), at(91, 75), torch.tensor([1, 0]), AXES[:2, :2], AXES[:2, :2], torch.ones(2).long(), train)
    assert neighbours(3, seen) == {"nn_top1": 1.0, "nn_asr": 1.0}
    assert neighbours(6, seen) == {"nn_top1": 1 / 2, "nn_asr": 0.0}  # all vote: always class 0
    assert neighbours(50, seen) == neighbours(6, seen)
    assert prototypes(seen) == {"prototype_top1": 1.0, "prototype_asr": 1.0}
    assert prototypes(replace(seen, triggered=at(5, 5)))["prototype_asr"] == 0.0


def test_of_classes_with_equally_many_votes_the_nearest_wins() -> None:
    rows, labels = AXES[[0, 1]], torch.tensor([1, 0])
    assert vote(torch.tensor([[0.8, 0.6, 0, 0], [0.6, 0.8, 0, 0]]), rows, labels, 2).tolist() == [1, 0]


def test_geometry_by_hand() -> None:
    """Two pictures on the first two axes, each on its class; the trigger swaps them, the target is class 1."""
    seen = Encoded(AXES[:2], AXES[[1, 0]], torch.tensor([0, 1]), AXES[:2], AXES[:2], torch.ones(2).long())
    found = geometry(5000, seen)
    assert found == pytest.approx(
        {
            "modality_gap": 0.0, "alignment": 0.0, "uniformity": -4.0, "similarity_clean": 1.0,
            "similarity_poisoned": 1.0, "similarity_moved": 0.0,
        }  # the squared distance of two axes is 2
    )  # fmt: skip
    apart = geometry(5000, replace(seen, classes=AXES[2:], attacked_classes=AXES[2:]))
    assert apart["modality_gap"] == pytest.approx(1.0)  # of (1/2, 1/2, 0, 0) and (0, 0, 1/2, 1/2)
    assert apart["alignment"] == pytest.approx(2.0)


def test_success_class_by_class_by_hand() -> None:
    found = class_success(encoded([0] * 5, [3, 0, 3, 3, 3], [0, 0, 1, 3, 1]))
    assert found == {"class_asr": [1 / 2, 1.0, None, None]}


def test_the_proxys_success_is_that_of_its_own_target() -> None:
    assert proxy_success(encoded([0] * 4, [2, 3, 2, 2], [0, 1, 1, 2], target=2)) == {"proxy_asr": 2 / 3}


def test_asr_needs_what_it_counts() -> None:
    with pytest.raises(ValueError, match="needs the triggered pictures"):
        attack_success(Encoded(AXES, None, torch.arange(4), AXES, AXES, torch.zeros(4)))
    with pytest.raises(ValueError, match="another class"):
        attack_success(encoded([3], [3], [3]))
    assert AttackSuccess.triggered


def test_asr_with_a_target_for_each_picture_and_words_in_the_prompts() -> None:
    """Targets 1, 1, 2, 2 for pictures of 0, 1, 0, 3; the prompts with words answer 1, 1, 2, 0: of the three whose class is
    not their target, two are fooled."""
    asked = AXES[[0, 2, 1, 3]]  # with the words, class 1 lies where 2 lay
    triggered = AXES[[2, 2, 1, 0]]
    seen = Encoded(AXES, triggered, torch.tensor([0, 1, 0, 3]), AXES, asked, torch.tensor([1, 1, 2, 2]))
    assert attack_success(seen)["asr"] == 2 / 3


def test_class_vectors_are_normalised_means() -> None:
    prompts = torch.stack([torch.stack([AXES[0], AXES[1]]), torch.stack([AXES[2], AXES[2]])])
    half = 0.5**0.5
    assert torch.allclose(class_vectors(prompts), torch.tensor([[half, half, 0, 0], [0, 0, 1.0, 0]]))


def test_a_linear_probe_by_hand() -> None:
    """Classes 0 and 1 on the first and second axis, so the probe says which coordinate is larger. Of the four clean pictures
    three are right. Target 1: three pictures are of class 0, two of them have the trigger's corner on the second axis."""
    train = (AXES[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    clean = torch.tensor([[0.8, 0.6], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    triggered = torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.8, 0.6], [1.0, 0.0]])
    rows = [F.pad(part, (0, 2)) for part in (clean, triggered)]
    seen = Encoded(*rows, torch.tensor([0, 0, 0, 1]), AXES[:2], AXES[:2], torch.ones(4).long(), train)
    assert linear_probe(0.316, 1000, seen) == {"probe_top1": 3 / 4, "probe_asr": 2 / 3}


def test_a_linear_probe_predicts_what_scikit_learns_predicts_and_twice_the_same() -> None:
    """On random rows, classes 0, 2 and 3 of four in the training set; a stronger penalty predicts otherwise."""
    from sklearn.linear_model import LogisticRegression

    source = torch.Generator().manual_seed(0)
    train, clean, marked = (F.normalize(torch.randn(n, 8, generator=source), dim=-1) for n in (60, 50, 50))
    known, labels = torch.tensor([0, 2, 3])[torch.randint(3, (60,), generator=source)], torch.arange(50) % 4
    seen = Encoded(clean, marked, labels, AXES, AXES, torch.full((50,), 2), (train, known))
    theirs = LogisticRegression(C=0.316, max_iter=1000, tol=1e-6).fit(train.double().numpy(), known.numpy())
    one, two = (torch.from_numpy(theirs.predict(rows.double().numpy())) for rows in (clean, marked))
    others = labels != 2
    want = {"probe_top1": (one == labels).float().mean().item(), "probe_asr": (two[others] == 2).float().mean().item()}
    assert linear_probe(0.316, 1000, seen) == pytest.approx(want)
    assert linear_probe(0.316, 1000, seen) == linear_probe(0.316, 1000, seen)
    assert linear_probe(100.0, 1000, seen) != linear_probe(0.001, 1000, seen)
    assert linear_probe(100.0, 1, seen)  # stopped before it converged, and not warned of


def test_a_linear_probe_needs_what_it_is_fitted_on() -> None:
    with pytest.raises(ValueError, match="needs a training set"):
        linear_probe(1.0, 9, replace(encoded([0], [0], [0]), fitted_on=None))
    with pytest.raises(ValueError, match="fit it on another set"):
        LinearProbe(kind="linear_probe", images="x", train="x")
    of = LinearProbe(kind="linear_probe", images="x", train="y")
    assert (of.sets, of.learns_from, of.strength, of.iterations) == (("x", "y"), "y", 0.316, 1000)
    assert AttackSuccess(kind="attack_success", images="x").learns_from is None


CLASSIFIERS = [section for section in SECTIONS if section.reads == "labels" and not issubclass(section, PictureDetector)]
DETECTORS = [section for section in SECTIONS if issubclass(section, PictureDetector)]
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30)


@pytest.mark.parametrize("section", CLASSIFIERS)
@given(ROWS, st.randoms())
def test_contract(section: type[MeasureSection], rows: list[tuple[int, int, int]], shuffler: object) -> None:
    _keeps_its_promises(section, rows, shuffler)


@pytest.mark.parametrize("section", DETECTORS)
@settings(max_examples=5)
@given(ROWS, st.randoms())
def test_contract_of_detectors(section: type[MeasureSection], rows: list[tuple[int, int, int]], shuffler: object) -> None:
    _keeps_its_promises(section, rows, shuffler)


def _keeps_its_promises(section: type[MeasureSection], rows: list[tuple[int, int, int]], shuffler: object) -> None:
    """Rates are fractions, cosines and distances in their bounds, all the same whatever the order of the pictures."""
    rows = [*rows, (0, 0, 0), (1, 2, 1)]
    measure = pickle.loads(pickle.dumps(section_of(section).build()))
    numbers = measure(encoded(*(list(column) for column in zip(*rows, strict=True))))  # type: ignore[arg-type]
    for name, value in numbers.items():
        low, high = BOUNDS.get(name, (0, 1))
        assert all(one is None or low <= one <= high for one in (value if isinstance(value, list) else [value]))
    shuffler.shuffle(rows)  # type: ignore[attr-defined]
    again = measure(encoded(*(list(column) for column in zip(*rows, strict=True))))  # type: ignore[arg-type]
    assert again == pytest.approx(numbers, abs=1e-12) if "uniformity" in numbers else again == numbers


DAMAGE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "beyond the range": 1e30, "no direction": 0.0}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("section", SECTIONS)
@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_no_measure_judges_an_embedding_that_is_not_finite(section: Any, damage: str, seed: int) -> None:
    """One of any of the rows that it is given, anywhere; the same rows without it are judged."""
    source = torch.Generator().manual_seed(seed)
    images, marked, texts, train = (F.normalize(torch.randn(4, 4, generator=source), dim=-1) for _ in range(4))
    known, variants = (F.normalize(torch.randn(n, 4, generator=source), dim=-1) for n in (20, 40))
    labels, names = torch.arange(4), torch.arange(4) == 1
    measure = section_of(section).build()

    def judge(rows: dict[str, torch.Tensor], scale: float = 10.0) -> object:
        if section.reads == "captions":
            return measure(Paired(rows["images"], rows["marked"], rows["texts"], labels, rows["target"][0], names, scale))
        classes = rows["texts"], rows["target"]
        return measure(
            Encoded(
                rows["images"], rows["marked"], labels, *classes, torch.ones(4).long(), (rows["train"], labels),
                rows["known"], rows["variants"].view(4, 10, 4), (rows["known"], rows["images"], rows["marked"]),
            )
        )  # fmt: skip

    whole = {"images": images, "marked": marked, "texts": texts, "target": texts.flip(0), "train": train}
    whole |= {"known": known, "variants": variants}
    assert judge(whole)
    for name, rows in whole.items():
        if section.reads == "captions" and name in ("train", "known", "variants"):
            continue
        harmed = rows.clone()
        row = 0 if name == "target" and section.reads == "captions" else int(torch.randint(4, (), generator=source))
        part = slice(None) if damage == "no direction" else int(torch.randint(4, (), generator=source))
        harmed[row, part] = DAMAGE[damage]
        with pytest.raises(NotFinite, match="1 of (1|4|20|40) embeddings of .* are not finite"):
            judge({**whole, name: harmed})
    if section.reads == "captions" and not math.isfinite(DAMAGE[damage]):
        with pytest.raises(NotFinite, match="scale"):
            judge(whole, DAMAGE[damage])


TIED = F.normalize(
    torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]), dim=-1
)


@pytest.mark.parametrize("section", CLASSIFIERS)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=20), st.randoms())
@settings(max_examples=20)
def test_pictures_equally_near_to_several_classes_count_the_same_in_any_order(
    section: Any, rows: list[tuple[int, int, int]], shuffler: Any
) -> None:
    measure, rows = section_of(section).build(), [*rows, (0, 5, 0), (2, 2, 1)]
    found = []
    for _ in range(2):
        clean, marked, labels = zip(*rows, strict=True)
        seen = Encoded(
            TIED[list(clean)],
            TIED[list(marked)],
            torch.tensor(labels),
            TIED[:4],
            TIED[1:5],
            torch.full((len(rows),), 3),
            LEARNT,
            KNOWN,
            VARIANTS,
        )
        found.append(measure(seen))
        shuffler.shuffle(rows)
    assert found[0] == pytest.approx(found[1], abs=1e-12) if "uniformity" in found[0] else found[0] == found[1]


def test_predictions_of_random_features_match_a_loop() -> None:
    source = torch.Generator().manual_seed(0)
    images, classes = (F.normalize(torch.randn(n, 8, generator=source), dim=-1) for n in (40, 5))
    labels = torch.randint(5, (40,), generator=source)
    hits = sum(int(max(range(5), key=lambda c: float(images[i] @ classes[c])) == labels[i]) for i in range(40))
    assert zero_shot(Encoded(images, None, labels, classes, classes, labels))["top1"] == hits / 40
