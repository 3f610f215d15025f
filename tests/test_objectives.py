"""Objectives: numbers by hand, invariances, parity with the plain formula, equality of any number of ranks with one."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ranks import play
from sections import SECTIONS, SUM, D, N, asked, features, part, section

from objectives.contract import Features, ObjectiveSection, Terms
from objectives.cyclip import cyclic
from objectives.exchange import SINGLE_RANK, Exchange, Ranks, grid
from objectives.infonce import infonce
from objectives.slip import simclr


def alone(of: ObjectiveSection, given: Features) -> Terms:
    return of.build()(given, Exchange(SINGLE_RANK))


def by_hand(images: list[list[float]], texts: list[list[float]], s: float, **more: Any) -> Features:
    def rows(of: list[list[float]]) -> tuple[torch.Tensor, ...]:
        return (torch.tensor(of, dtype=torch.float64),)

    return Features(rows(images), rows(texts), {"scale": torch.tensor([math.log(s)], dtype=torch.float64)}, **more)


EYE = [[1.0, 0.0], [0.0, 1.0]]
SAME = [[1.0, 0.0], [1.0, 0.0]]


def test_infonce_by_hand() -> None:
    """Two orthogonal pairs at s = ln 3: each row has logits (ln 3, 0), so the loss is ln(4/3) both ways."""
    eye, s = torch.eye(2, dtype=torch.float64), torch.tensor(math.log(3.0), dtype=torch.float64)
    forth, back = infonce(eye, eye, s, Exchange(SINGLE_RANK))
    assert forth.item() == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert back.item() == pytest.approx(math.log(4 / 3), abs=1e-12)


def test_mmcl_by_hand() -> None:
    """I = e1, e2 and T = e1, e1 at s = ln 3: rows of s I T^t are (ln 3, ln 3) and (0, 0), so CE = ln 2; columns are (ln
    3, 0) twice, so CE is ln(4/3) for the first caption and ln 4 for the second."""
    terms = alone(section({"kind": "mmcl", "weight": 2.0}), by_hand(EYE, SAME, math.log(3)))
    expected = (math.log(2) + (math.log(4 / 3) + math.log(4)) / 2) / 2
    assert terms["mmcl"].item() == pytest.approx(expected, abs=1e-12)
    assert terms["loss"].item() == pytest.approx(2 * expected, abs=1e-12)


def test_ssl_by_hand() -> None:
    """Originals e1, e2, augmented e1, e1 at s = ln 3: one way rows give ln 2; the other way columns give ln(4/3), ln 4."""
    given = by_hand(EYE, EYE, math.log(3))
    given = replace(given, images=(given.images[0], torch.tensor(SAME, dtype=torch.float64)))
    back = (math.log(4 / 3) + math.log(4)) / 2
    assert alone(section({"kind": "ssl", "text": False}), given)["ssl"].item() == pytest.approx(math.log(2), abs=1e-12)
    both = alone(section({"kind": "ssl", "text": False, "direction": "symmetric"}), given)["ssl"].item()
    assert both == pytest.approx((math.log(2) + back) / 2, abs=1e-12)
    given = replace(given, texts=given.images, images=given.texts)
    assert alone(section({"kind": "ssl", "image": False}), given)["ssl"].item() == pytest.approx(math.log(2), abs=1e-12)
    other = replace(given, learned={**given.learned, "ssl_scale": torch.tensor([-50.0], dtype=torch.float64)})
    flat = alone(section({"kind": "ssl", "image": False, "temperature": "own"}), other)["ssl"].item()
    assert flat == pytest.approx(math.log(2), abs=1e-12)  # s = 0: two equal logits


def test_ssl_by_modality_by_hand() -> None:
    """At s = ln 3 pictures e1, e2 with views e1, e1 give ln 2, captions e1, e2 with views e1, e2 ln(4/3). Half of their
    weighted sum; a part of weight 0 leaves the other as it was, and asks for no view."""
    given = by_hand(EYE, EYE, math.log(3))
    same, eye = torch.tensor(SAME, dtype=torch.float64), torch.tensor(EYE, dtype=torch.float64)
    given = replace(given, images=(given.images[0], same), texts=(given.texts[0], eye))
    weighted = alone(section({"kind": "ssl", "pictures": 0.5, "captions": 3.0, "weight": 2.0}), given)
    assert weighted["loss"].item() == pytest.approx(0.5 * math.log(2) + 3 * math.log(4 / 3), abs=1e-12)
    for kind in ("ssl", "cleanclip"):
        for fields, views, expected in (
            ({"captions": 0.0}, (2, 1), math.log(2) / 2), ({"pictures": 0.0}, (1, 2), math.log(4 / 3) / 2),
        ):  # fmt: skip
            of = section({"kind": kind, **fields})
            cut = replace(given, images=given.images[: views[0]], texts=given.texts[: views[1]])
            assert of.views == views
            assert alone(of, cut)["ssl"].item() == pytest.approx(expected, abs=1e-12)


def test_poisoned_pairs_that_are_left_out_are_in_the_cross_modal_term_alone() -> None:
    """The third pair, poisoned, is in no similarity of the second term, nor gets a gradient of it; MMCL has all three."""
    of = section({"kind": "mmcl_ssl", "poisoned": "left_out", "direction": "symmetric"})
    assert of.needs == {"poisoned"}
    assert not section({"kind": "mmcl_ssl"}).needs
    whole = replace(features(of, rows=3), poisoned=torch.tensor([False, False, True]))
    plain = section({"kind": "mmcl_ssl", "direction": "symmetric"})
    terms = alone(of, whole)
    assert terms["ssl"].item() == pytest.approx(alone(plain, part(whole, slice(0, 2)))["ssl"].item(), rel=1e-12)
    assert terms["mmcl"].item() == pytest.approx(alone(plain, whole)["mmcl"].item(), rel=1e-12)
    for grad in torch.autograd.grad(terms["ssl"], [*whole.images, *whole.texts]):
        assert not grad[2].any()
        assert grad[:2].any()
    assert alone(of, replace(whole, poisoned=torch.ones(3, dtype=torch.bool)))["ssl"].item() == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "mmcl_ssl", "pictures": 0, "captions": 0}, "nothing to contrast"),
        ({"kind": "ssl", "pictures": 0, "text": False}, "nothing to contrast"),
        ({"kind": "ssl", "captions": 2, "text": False}, "takes that part out"),
        ({"kind": "mmcl_ssl", "pictures": -1}, "greater than or equal to 0"),
    ],
)
def test_weights_that_leave_nothing_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        section(fields)


def test_sections_without_the_newer_fields_are_written_as_before_them() -> None:
    """So that fingerprints of specs stay as they were."""
    own = {"kind": "ssl", "weight": 1.0, "image": True, "text": True, "direction": "one_way", "temperature": "shared"}
    both = {"kind": "cleanclip", "across": 1.0, "within": 1.0, "average": False, "direction": "one_way"}
    for fields in (own, both | {"temperature": "shared"}):
        for more in ({}, {"pictures": 1.0, "captions": 1.0, "poisoned": "contrasted"}):
            assert section(fields | more).model_dump(mode="json") == fields
    assert section({"kind": "ssl", "captions": 0}).model_dump(mode="json") == own | {"captions": 0.0}
    assert section(both | {"poisoned": "left_out"}).model_dump()["poisoned"] == "left_out"


def test_mmcl_ssl_is_the_weighted_sum_of_its_terms() -> None:
    of = section({"kind": "cleanclip", "across": 0.5, "within": 3.0})
    given = features(of)
    terms = alone(of, given)
    own = alone(section({"kind": "ssl"}), given)["ssl"].item()
    assert terms["ssl"].item() == pytest.approx(own, rel=1e-12)
    assert terms["loss"].item() == pytest.approx(0.5 * terms["mmcl"].item() + 3 * own, rel=1e-12)
    half = alone(section({"kind": "cleanclip", "across": 0.5, "within": 3.0, "average": True}), given)
    assert half["loss"].item() == pytest.approx(terms["loss"].item() / 2, rel=1e-12)


def test_siglip_by_hand() -> None:
    """I = e1, e2 and T = e1, e1 with s = ln 9, b = -ln 3: true pairs have z (s x + b) = ln 3 and -ln 3, false ones -ln 3
    (row 1, column 2: x = 1) and ln 3 (row 2, column 1: x = 0); -log sigmoid(ln 3) = ln(4/3), of -ln 3 it is ln 4."""
    given = by_hand(EYE, SAME, math.log(9))
    given = replace(given, learned={**given.learned, "bias": torch.tensor([-math.log(3)], dtype=torch.float64)})
    expected = (2 * math.log(4 / 3) + 2 * math.log(4)) / 2
    assert alone(section({"kind": "siglip"}), given)["loss"].item() == pytest.approx(expected, abs=1e-12)
    # without bias: true ln 9, 0; false -ln 9, 0; 0.1 times the mean over four entries
    plain = 0.1 * (math.log(10 / 9) + 2 * math.log(2) + math.log(10)) / 4
    assert alone(section({"kind": "siglip", "form": "paper_code"}), given)["loss"].item() == pytest.approx(plain, abs=1e-12)
    learned = section({"kind": "siglip"}).learned(4, torch.Generator())
    assert (learned["scale"].initial.exp().item(), learned["bias"].initial.item()) == pytest.approx((10, -10))


def test_simclr_by_hand() -> None:
    """Both views e1, e2 at scale ln 3: a row sees its partner at ln 3 and the two of the other pair at 0, itself masked: so
    -ln(3 / 5)."""
    eye = torch.eye(2, dtype=torch.float64)
    out = simclr(eye, eye, torch.tensor(math.log(3), dtype=torch.float64), Exchange(SINGLE_RANK))
    assert out.item() == pytest.approx(math.log(5 / 3), abs=1e-12)


def test_cyclip_by_hand() -> None:
    """I = e1, e2 and T = e1, e1: I I^t and T T^t differ by 1 in two entries, so 2/N = 1; I T^t = (1 1; 0 0) and its
    transpose differ by 1 in two entries too."""
    given = by_hand(EYE, SAME, 20.0)
    terms = alone(section({"kind": "cyclip", "in_modal": 0.5, "cross_modal": 0.25}), given)
    assert (terms["in_modal"].item(), terms["cross_modal"].item()) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert terms["loss"].item() == pytest.approx(terms["mmcl"].item() + 0.75, abs=1e-12)


def test_cyclip_is_the_published_formula() -> None:
    """mean (sII - sTT)^2 * N / s^2, by the N x N matrices."""
    given = features(section({"kind": "cyclip"}))
    images, texts, s = given.images[0], given.texts[0], given.scale
    inside = (s * images @ images.T - s * texts @ texts.T).square().mean() / s**2 * N
    between = (s * images @ texts.T - s * texts @ images.T).square().mean() / s**2 * N
    ours = cyclic(images, texts, Exchange(SINGLE_RANK))
    for mine, plain in zip(ours, (inside, between), strict=True):
        assert mine.item() == pytest.approx(plain.item(), rel=1e-12)
        for a, b in zip(*(torch.autograd.grad(x, (images, texts), retain_graph=True) for x in (mine, plain)), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_deep_cluster_by_hand() -> None:
    """A head of zeros gives ln K for each labelled pair, whatever the label; a pair without one does not count."""
    given = replace(by_hand(EYE, EYE, 1.0), labels=torch.tensor([2, -1]))
    zeros = {"cluster.weight": torch.zeros(3, 2, dtype=torch.float64), "cluster.bias": torch.zeros(3, dtype=torch.float64)}
    given = replace(given, learned={**given.learned, **zeros})
    terms = alone(section({"kind": "deep_cluster", "classes": 3, "weight": 5.0, "within": 0.0}), given)
    assert terms["cluster"].item() == pytest.approx(math.log(3), abs=1e-12)
    assert terms["loss"].item() == pytest.approx(terms["mmcl"].item() + 5 * math.log(3), abs=1e-12)
    zeros["cluster.bias"][2] = math.log(2)  # the label's probability becomes 2/4
    assert alone(section({"kind": "deep_cluster", "classes": 3, "within": 0.0}), given)["cluster"].item() == pytest.approx(
        math.log(2), abs=1e-12
    )


def test_supervised_by_hand() -> None:
    """Pictures e1, e2, e1 with labels 0, 0 and none, W = ln 3 times the identity: the right class has probability 3/4, the
    wrong one 1/4; so the mean of ln(4/3) and ln 4, one of two right. A bias of ln 9 for class 0 makes it 27/28 and 9/12."""
    of = section({"kind": "supervised", "classes": 2})
    head = {
        "supervised.weight": math.log(3) * torch.eye(2, dtype=torch.float64),
        "supervised.bias": torch.zeros(2, dtype=torch.float64),
    }
    given = replace(by_hand([*EYE, [1.0, 0.0]], [], 7.0), labels=torch.tensor([0, 0, -1]), learned=head, texts=())
    terms = alone(of, given)
    assert terms["loss"].item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-12)
    assert terms["right"].item() == 0.5
    assert not terms["right"].requires_grad
    head["supervised.bias"][0] = math.log(9)
    terms = alone(of, given)
    assert terms["supervised"].item() == pytest.approx((math.log(28 / 27) + math.log(4 / 3)) / 2, abs=1e-12)
    assert terms["right"].item() == 1.0
    assert of.views == (1, 0)
    assert not of.moves_texts


def test_a_sum_moves_the_text_tower_if_a_part_does() -> None:
    taught, pair = ({"objective": {"kind": "supervised", "classes": 4}}, {"objective": {"kind": "mmcl"}})
    both, alone_ = (section({"kind": "sum", "parts": parts}) for parts in ([taught, pair], [taught]))
    assert (both.moves_texts, both.views) == (True, (1, 1))
    assert (alone_.moves_texts, alone_.views) == (False, (1, 0))


def test_par_by_hand() -> None:
    """Pictures e1, e2 that started both at e1: squared distances 0 and 2, so d_v = 1; captions moved to their opposite:
    d_t = 4, beyond tau, so it does not count."""
    start = (torch.tensor(SAME, dtype=torch.float64), -torch.tensor(EYE, dtype=torch.float64))
    terms = alone(section({"kind": "par"}), by_hand(EYE, EYE, 5.0, start=start))
    assert (terms["away_images"].item(), terms["away_texts"].item()) == pytest.approx((1.0, 4.0), abs=1e-12)
    assert terms["loss"].item() == pytest.approx(terms["mmcl"].item() - 0.5, abs=1e-12)


def test_roclip_by_hand() -> None:
    """A pool of -e1 and e2: picture e1 is nearest to e2 (cosine 0 against -1), picture e2 too. So captions e2, e2: rows
    (0, 0) and (s, s), ln 2 both; columns (0, s) twice."""
    memory = {
        "roclip.pool": torch.tensor([[-1.0, 0], [0, 1], [1, 0]], dtype=torch.float64),
        "roclip.seen": torch.tensor([2]),
    }
    of = section({"kind": "roclip", "every": 2, "pool": 3})
    given = by_hand(EYE, EYE, math.log(3), memory=memory, epoch=2)
    back = (math.log(4) + math.log(4 / 3)) / 2
    assert alone(of, given)["roclip"].item() == pytest.approx((math.log(2) + back) / 2, abs=1e-12)
    assert alone(of, replace(given, epoch=1))["mmcl"].item() == pytest.approx(math.log(4 / 3), abs=1e-12)
    empty = {**memory, "roclip.seen": torch.tensor([0])}
    assert alone(of, replace(given, memory=empty))["roclip"].item() == pytest.approx(math.log(4 / 3), abs=1e-12)


def test_roclip_remembers_the_newest_captions_first_in_first_out() -> None:
    of = section({"kind": "roclip", "pool": 3})
    memory = of.memory(1)
    for step in range(3):
        texts = torch.tensor([[2.0 * step], [2.0 * step + 1]])
        given = Features((texts,), (texts,), {}, memory=memory)
        memory = of.remember(given, Exchange(SINGLE_RANK))
    assert memory["roclip.seen"].item() == 6
    assert sorted(memory["roclip.pool"].flatten().tolist()) == [3.0, 4.0, 5.0]
    wide = torch.arange(5.0)[:, None]
    memory = of.remember(Features((wide,), (wide,), {}, memory=of.memory(1)), Exchange(SINGLE_RANK))
    assert sorted(memory["roclip.pool"].flatten().tolist()) == [2.0, 3.0, 4.0]


def test_unlearn_by_hand() -> None:
    """Three pairs, the last one flagged with cosine 1 and target -1: (1 + 1)^2 = 4; the kept two are mmcl's example, as if
    the third were not there."""
    given = by_hand([*EYE, [1.0, 0.0]], [*SAME, [1.0, 0.0]], math.log(3), flags=torch.tensor([False, False, True]))
    terms = alone(section({"kind": "unlearn", "flags": "x", "weight": 0.25}), given)
    expected = (math.log(2) + (math.log(4 / 3) + math.log(4)) / 2) / 2
    assert terms["mmcl"].item() == pytest.approx(expected, abs=1e-12)
    assert terms["loss"].item() == pytest.approx(expected + 1.0, abs=1e-12)


@pytest.mark.parametrize("flagged", [True, False])
def test_unlearn_with_all_or_no_pairs_flagged_is_finite(flagged: bool) -> None:
    of = section({"kind": "unlearn", "flags": "x"})
    given = replace(features(of), flags=torch.full((N,), flagged))
    terms = alone(of, given)
    grads = torch.autograd.grad(terms["loss"], given.images + given.texts)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert terms["mmcl" if flagged else "unlearn"].item() == 0


def test_a_sum_weighs_its_parts() -> None:
    given = features(section(SUM))
    total = sum(
        entry.get("weight", 1.0) * alone(section(entry["objective"]), given)["loss"].item()  # type: ignore[attr-defined]
        for entry in SUM["parts"]
    )
    terms = alone(section(SUM), given)
    assert terms["loss"].item() == pytest.approx(total, rel=1e-12)
    assert {"siglip", "ssl", "roclip", "mmcl", "in_modal"} <= set(terms)


@pytest.mark.parametrize("fields", SECTIONS, ids=str)
def test_contract(fields: dict[str, Any]) -> None:
    of = section(fields)
    objective = pickle.loads(pickle.dumps(of.build()))
    given = features(of)
    terms = objective(given, Exchange(SINGLE_RANK))
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    grads = torch.autograd.grad(terms["loss"], asked(given), allow_unused=True)
    unused = [
        name for name, grad in zip(given.learned, grads[len(given.images) + len(given.texts) :], strict=True) if grad is None
    ]
    assert set(unused) <= {"scale"}  # which PAR does not train, and SSL with its own does not use
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)
    hot = features(of, scale=100.0)
    assert torch.isfinite(objective(hot, Exchange(SINGLE_RANK))["loss"])
    after = of.remember(given, Exchange(SINGLE_RANK))
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in given.memory.items()
    }


@pytest.mark.parametrize("fields", SECTIONS, ids=str)
@settings(max_examples=5, deadline=None)
@given(st.permutations(range(N)))
def test_the_order_of_pairs_does_not_matter(fields: dict[str, Any], order: list[int]) -> None:
    of = section(fields)
    given = features(of)
    assert alone(of, part(given, order))["loss"].item() == pytest.approx(alone(of, given)["loss"].item(), rel=1e-12)


@pytest.mark.parametrize("fields", SECTIONS, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_ranks_give_the_loss_and_every_gradient_of_one(fields: dict[str, Any], ranks: int) -> None:
    of = section(fields)
    objective, whole = of.build(), features(of)
    reference = objective(whole, Exchange(SINGLE_RANK))
    expected = torch.autograd.grad(reference["loss"], asked(whole), allow_unused=True)
    remembered = of.remember(whole, Exchange(SINGLE_RANK))

    def act(rank: int, places: Ranks) -> tuple[Terms, list[torch.Tensor | None], dict[str, torch.Tensor]]:
        mine, rows = features(of), N // ranks
        share, exchange = part(mine, slice(rank * rows, (rank + 1) * rows)), Exchange(places)
        terms = objective(share, exchange)
        grads = list(torch.autograd.grad(terms["loss"], asked(mine), allow_unused=True))
        return {name: term.detach() for name, term in terms.items()}, grads, of.remember(share, exchange)

    played = play(ranks, act)
    for name, term in reference.items():
        assert sum(terms[name].item() for terms, *_ in played) / ranks == pytest.approx(term.item(), abs=1e-10), name
    for number, want in enumerate(expected):
        got = [grads[number] for _, grads, _ in played if grads[number] is not None]
        assert (want is None) == (not got)
        if want is not None:
            assert torch.allclose(sum(got) / ranks, want, atol=1e-10, rtol=0)  # type: ignore[arg-type]
    for _, _, memory in played:
        assert all(torch.allclose(memory[name], remembered[name]) for name in remembered)


@given(st.integers(1, 2000))
def test_the_grid_is_as_square_as_the_number_allows(ranks: int) -> None:
    rows, columns = grid(ranks)
    assert rows * columns == ranks
    assert rows <= columns
    assert not any(ranks % n == 0 for n in range(rows + 1, int(ranks**0.5) + 1))


def plain_infonce(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The textbook's, with its matrix of logits."""
    logits = scale * left[kept] @ right[kept].T
    own = torch.arange(len(logits))
    return F.cross_entropy(logits, own) + 2 * F.cross_entropy(logits.T, own)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 11), st.sampled_from([0.01, 1.0, 14.3, 100.0]), st.booleans(), st.integers(0, 1000))
def test_tiles_are_the_textbooks_cross_entropy(rows: int, s: float, alike: bool, seed: int) -> None:
    """Value and gradient in float64, over several blocks; `alike`: rows equal or opposite, the hardest for exponentials."""
    from objectives import tiles

    draw = torch.Generator().manual_seed(seed)
    left = F.normalize(torch.randn(rows, D, dtype=torch.float64, generator=draw), dim=-1)
    right = left * torch.sign(torch.randn(rows, 1, dtype=torch.float64, generator=draw)) if alike else left.roll(1, 0)
    kept = torch.rand(rows, generator=draw) < 0.7
    kept[0] = True
    given = [
        left.clone().requires_grad_(),
        right.clone().requires_grad_(),
        torch.tensor(s, dtype=torch.float64, requires_grad=True),
    ]
    block, tiles.BLOCK = tiles.BLOCK, 4
    try:
        for flags in (kept, None):
            forth, back = infonce(*given, Exchange(SINGLE_RANK), kept=flags)  # type: ignore[arg-type]
            want = plain_infonce(*given, kept if flags is not None else torch.ones_like(kept))
            mine = forth + 2 * back
            assert mine.item() == pytest.approx(want.item(), abs=1e-9)
            for a, b in zip(*(torch.autograd.grad(x, given, retain_graph=True) for x in (mine, want)), strict=True):
                assert torch.allclose(a, b, atol=1e-9)
    finally:
        tiles.BLOCK = block


@pytest.mark.parametrize("fields", [fields for fields in SECTIONS if fields != {"kind": "par"}], ids=str)  # it detaches s
def test_gradients_are_those_of_finite_differences(fields: dict[str, Any]) -> None:
    of = section(fields)
    given = features(of, rows=4)
    objective: Callable[..., Terms] = of.build()

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        images, texts = len(given.images), len(given.texts)
        learned = dict(zip(given.learned, tensors[images + texts :], strict=True))
        changed = replace(given, images=tensors[:images], texts=tensors[images : images + texts], learned=learned)
        return objective(changed, Exchange(SINGLE_RANK))["loss"]

    assert torch.autograd.gradcheck(loss, tuple(asked(given)), atol=1e-5)
