"""Objectives: numbers by hand, invariances, and equality of any number of ranks with one."""

import math
import pickle
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives import AnyObjective
from objectives.contract import Features, ObjectiveSection
from objectives.infonce import infonce
from objectives.mmcl import Mmcl
from objectives.mmcl_ssl import MmclSsl

SECTIONS = [
    (section, kind)
    for section in get_args(get_args(AnyObjective)[0])
    for kind in get_args(section.model_fields["kind"].annotation)
]


def features(rows: int, views: int, seed: int = 0, scale: float = 10.0) -> Features:
    source = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(views, rows, 8, dtype=torch.float64, generator=source), dim=-1) for _ in range(2))
    return Features(
        image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    )


def alone(rows: torch.Tensor) -> torch.Tensor:
    return rows


def test_infonce_by_hand() -> None:
    """Two orthogonal pairs at s = ln 3: each row has logits (ln 3, 0), so the loss is ln(4/3)."""
    eye = torch.eye(2, dtype=torch.float64)
    assert infonce(eye, eye, torch.tensor(math.log(3.0), dtype=torch.float64), 0).item() == pytest.approx(
        math.log(4 / 3), abs=1e-12
    )
    assert infonce(eye[:1], eye, torch.tensor(math.log(3.0), dtype=torch.float64), 1).item() == pytest.approx(
        math.log(4), abs=1e-12
    )


def test_mmcl_by_hand() -> None:
    """I = (1, 0), (0, 1) and T = (1, 0), (1, 0) at s = ln 3: rows of s I T^t are (ln 3, ln 3) and (0, 0), so CE = ln 2;
    columns are (ln 3, 0) twice, so CE is ln(4/3) for the first caption and ln 4 for the second."""
    images = torch.eye(2, dtype=torch.float64)[None]
    texts = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    terms = Mmcl(kind="mmcl", weight=2.0).build()(
        Features(images, texts, torch.tensor(math.log(3.0), dtype=torch.float64)), alone, 0
    )
    expected = (math.log(2) + (math.log(4 / 3) + math.log(4)) / 2) / 2
    assert terms["mmcl"].item() == pytest.approx(expected, abs=1e-12)
    assert terms["loss"].item() == pytest.approx(2 * expected, abs=1e-12)


def test_mmcl_ssl_is_the_weighted_sum_of_its_terms() -> None:
    given = features(5, 2)
    terms = MmclSsl(kind="cleanclip", across=0.5, within=3.0).build()(given, alone, 0)
    image = infonce(given.images[0], given.images[1], given.scale, 0)
    text = infonce(given.texts[0], given.texts[1], given.scale, 0)
    assert terms["ssl"].item() == pytest.approx((image + text).item() / 2, rel=1e-12)
    assert terms["loss"].item() == pytest.approx(0.5 * terms["mmcl"].item() + 3 * terms["ssl"].item(), rel=1e-12)


@pytest.mark.parametrize(("section", "kind"), SECTIONS)
def test_contract(section: type[ObjectiveSection], kind: str) -> None:
    objective = pickle.loads(pickle.dumps(section(kind=kind).build()))
    given = features(6, section.views)
    terms = objective(given, alone, 0)
    assert "loss" in terms
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    terms["loss"].backward()
    for part in (given.images, given.texts, given.scale):
        assert part.grad is not None
        assert torch.isfinite(part.grad).all()
    hot = features(6, section.views, scale=100.0)
    assert torch.isfinite(objective(hot, alone, 0)["loss"])


@pytest.mark.parametrize(("section", "kind"), SECTIONS)
@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_pairs_does_not_matter(section: type[ObjectiveSection], kind: str, order: list[int]) -> None:
    given, objective = features(6, section.views), section(kind=kind).build()
    mixed = Features(given.images[:, order], given.texts[:, order], given.scale)
    assert objective(mixed, alone, 0)["loss"].item() == pytest.approx(objective(given, alone, 0)["loss"].item(), rel=1e-12)


@pytest.mark.parametrize(("section", "kind"), SECTIONS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_give_the_loss_and_gradients_of_one(section: type[ObjectiveSection], kind: str, ranks: int) -> None:
    """Ranks are played in turn: `gather` hands out rows of the whole, whose gradients add up as all-gather's do."""
    objective, whole, rows = section(kind=kind).build(), features(12, section.views), 12 // ranks
    reference = objective(whole, alone, 0)["loss"]
    expected = torch.autograd.grad(reference, (whole.images, whole.texts, whole.scale))
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(ranks):
        mine = slice(rank * rows, (rank + 1) * rows)

        def gather(part: torch.Tensor, mine: slice = mine) -> torch.Tensor:
            for stack in (whole.images, whole.texts):
                for view in stack:
                    if torch.equal(view[mine], part):
                        return view
            raise AssertionError("gathered something that is no feature")

        share = objective(Features(whole.images[:, mine], whole.texts[:, mine], whole.scale), gather, rank)
        total = total + share["loss"] / ranks
    assert total.item() == pytest.approx(reference.item(), abs=1e-12)
    for got, want in zip(torch.autograd.grad(total, (whole.images, whole.texts, whole.scale)), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-12, rtol=0)
