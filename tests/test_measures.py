"""Measures: counts done by hand."""

import pickle
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from measures import AnyMeasure
from measures.attack_success import AttackSuccess, attack_success
from measures.classifier import class_vectors
from measures.contract import Encoded, MeasureSection
from measures.linear_probe import LinearProbe, linear_probe
from measures.zero_shot import zero_shot

SECTIONS = get_args(get_args(AnyMeasure)[0])
AXES = torch.eye(4)
LEARNT = (AXES, torch.arange(4))  # a training set: a picture a class


def encoded(predicted: list[int], triggered: list[int], labels: list[int], target: int = 3) -> Encoded:
    targets = torch.full((len(labels),), target)
    return Encoded(AXES[predicted], AXES[triggered], torch.tensor(labels), AXES, AXES, targets, LEARNT)


def section_of(section: type[MeasureSection]) -> MeasureSection:
    """A section on a set `x`, and on other sets for every other name that it must be given."""
    names = {name: name for name, field in section.model_fields.items() if field.annotation is str and field.is_required()}
    return section(**{**names, "images": "x", "kind": get_args(section.model_fields["kind"].annotation)[0]})


def test_top1_by_hand() -> None:
    assert zero_shot(encoded([0, 1, 2, 3, 0], [0] * 5, [0, 1, 2, 2, 1])) == {"top1": 3 / 5}


def test_asr_by_hand() -> None:
    """Five pictures, one of the target class 3: it counts neither above nor below. Two of the other four are fooled."""
    assert attack_success(encoded([0] * 5, [3, 3, 1, 3, 0], [0, 1, 2, 3, 1])) == {"asr": 2 / 4}


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
    assert attack_success(seen) == {"asr": 2 / 3}


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
    with pytest.raises(ValueError, match="fit the probe on another set"):
        LinearProbe(kind="linear_probe", images="x", train="x")
    of = LinearProbe(kind="linear_probe", images="x", train="y")
    assert (of.sets, of.learns_from, of.strength, of.iterations) == (("x", "y"), "y", 0.316, 1000)
    assert AttackSuccess(kind="attack_success", images="x").learns_from is None


@pytest.mark.parametrize("section", SECTIONS)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30), st.randoms())
def test_contract(section: type[MeasureSection], rows: list[tuple[int, int, int]], shuffler: object) -> None:
    """Fractions, whatever the order of the pictures."""
    rows = [*rows, (0, 0, 0)]
    measure = pickle.loads(pickle.dumps(section_of(section).build()))
    numbers = measure(encoded(*(list(column) for column in zip(*rows, strict=True))))  # type: ignore[arg-type]
    assert all(0 <= value <= 1 for value in numbers.values())
    shuffler.shuffle(rows)  # type: ignore[attr-defined]
    assert measure(encoded(*(list(column) for column in zip(*rows, strict=True)))) == numbers  # type: ignore[arg-type]


def test_predictions_of_random_features_match_a_loop() -> None:
    source = torch.Generator().manual_seed(0)
    images, classes = (F.normalize(torch.randn(n, 8, generator=source), dim=-1) for n in (40, 5))
    labels = torch.randint(5, (40,), generator=source)
    hits = sum(int(max(range(5), key=lambda c: float(images[i] @ classes[c])) == labels[i]) for i in range(40))
    assert zero_shot(Encoded(images, None, labels, classes, classes, labels))["top1"] == hits / 40
