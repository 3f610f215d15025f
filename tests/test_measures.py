"""Measures: counts done by hand."""

import pickle
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
from measures.zero_shot import zero_shot

SECTIONS = get_args(get_args(AnyMeasure)[0])
AXES = torch.eye(4)


def encoded(predicted: list[int], triggered: list[int], labels: list[int], target: int = 3) -> Encoded:
    return Encoded(AXES[predicted], AXES[triggered], torch.tensor(labels), AXES, AXES, torch.full((len(labels),), target))


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


@pytest.mark.parametrize("section", SECTIONS)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30), st.randoms())
def test_contract(section: type[MeasureSection], rows: list[tuple[int, int, int]], shuffler: object) -> None:
    """Fractions, whatever the order of the pictures."""
    rows = [*rows, (0, 0, 0)]
    measure = pickle.loads(
        pickle.dumps(section(kind=get_args(section.model_fields["kind"].annotation)[0], images="x").build())
    )
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
