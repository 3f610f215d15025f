"""Detection at test time: the detectors' own examples worked by hand, and what rejecting by a score gives."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from measures.bdet import Bdet, bdet, omega
from measures.contract import Encoded, Unmeasurable
from measures.detectors.contract import Embedded
from measures.detectors.registry import score_all
from measures.lorex import Lorex, axis, lorex, moments, whitening
from measures.reference_knn import ReferenceKnn, _section, reference_knn
from measures.rejection import Scores, auroc, exceeded, rejection, threshold
from measures.subspace import SAMPLES, Subspace, _cloud, distance, samples, subspace

EYE = torch.eye(4)


def drawn(count: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def seen(clean: torch.Tensor, triggered: torch.Tensor, references: torch.Tensor, prompts: Any = None) -> Encoded:
    """Pictures of classes 0, 1, 2, 3 in turn under an attack with target 3."""
    labels, classes = torch.arange(len(clean)) % 4, F.pad(EYE, (0, clean.shape[1] - 4))
    targets = torch.full((len(clean),), 3)
    return Encoded(clean, triggered, labels, classes, classes, targets, references=references, prompts=prompts)


def test_what_rejecting_gives_by_hand() -> None:
    """Eight pictures, two a class, target 3: six count as triggered. The threshold is the third of four references' scores,
    3. Above it lie two clean scores, one of a picture that is rightly answered, and five triggered ones; the sixth is of a
    picture taken for the target. No clean score lies above 9."""
    clean, found = torch.tensor([1.0, 2, 3, 9, 1, 2, 3, 7]), torch.tensor([8.0, 8, 8, 0, 8, 8, 3, 0])
    encoded = seen(EYE[[0, 1, 2, 3, 0, 1, 2, 0]], EYE[[3, 3, 3, 3, 3, 3, 3, 0]], EYE)
    scores = Scores(torch.tensor([1.0, 2.0, 3.0, 4.0]), clean, found)
    numbers = rejection("x", 0.75, encoded, lambda others, share: scores)
    assert numbers["x_flagged"] == numbers["x_fpr_at1"] == numbers["x_fpr_at50"] == 2 / 8
    assert numbers["x_tpr_at1"] == 5 / 6
    assert numbers["x_precision_at50"] == pytest.approx((5 / 6) / (5 / 6 + 2 / 8))
    assert numbers["x_precision_at1"] == pytest.approx(0.01 * 5 / 6 / (0.01 * 5 / 6 + 0.99 * 2 / 8))
    assert numbers["x_asr_at1"] == 1 / 6  # the one with the score of 3
    assert numbers["x_top1_at1"] == 6 / 8
    assert numbers["x_auroc_at50"] == (5 * 7 + 4 + 2 / 2) / 48  # 3 lies above four and beside two
    assert numbers["x_tpr_fpr1_at1"] == numbers["x_tpr_fpr5_at1"] == 0.0  # none above 9
    assert numbers["x_roc_at1"][-4:] == [0, 5 / 6, 1, 1]  # type: ignore[index]


def test_thresholds_by_hand() -> None:
    """Of 200 references one may lie above at 99.5 %, of 199 none; of 100 clean scores one at 1 %, of 99 none."""
    row = torch.arange(1.0, 201)
    assert [threshold(row, level) for level in (0.995, 0.99, 0.5, 1.0)] == [199, 198, 100, 200]
    assert threshold(row[:199], 0.995) == 199
    assert (exceeded(row[:100], 0.01), exceeded(row[:99], 0.01), exceeded(row, 1.0)) == (99, 99, -math.inf)
    assert threshold(torch.ones(5), 0.1) == 1.0


def test_auroc_counts_equal_scores_half() -> None:
    assert auroc(torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.9, 0.5])) == pytest.approx(11 / 12)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
@settings(max_examples=10)
def test_auroc_is_the_count_of_all_couples(clean: list[int], triggered: list[int]) -> None:
    couples = [(c < t) + (c == t) / 2 for c in clean for t in triggered]
    assert auroc(torch.tensor(clean), torch.tensor(triggered)) == pytest.approx(sum(couples) / len(couples))


LINE = torch.tensor([[2.0, 0], [-2, 0], [0, 0.1], [0, -0.1]], dtype=torch.float64)
COMES = torch.tensor([[2.0, 0], [-2, 0], [1, 0], [0, 1]], dtype=torch.float64)


def test_lorex_by_hand() -> None:
    """Clean (+-2, 0), (0, +-0.1), without a ridge; of four pictures that come the last alone lies far out."""
    mean, covariance = moments([(LINE, 1 / 4)])
    whiten = whitening(covariance * 4 / 3, 0.0)
    assert whiten.diag().tolist() == pytest.approx([0.612372, 12.247449], abs=1e-6)
    along = whiten @ axis(whiten, moments([(COMES, 1 / 4)])[1])
    assert ((COMES - mean) @ along).abs().tolist() == pytest.approx([0.021016, 0.021016, 0.010508, 12.245645], abs=1e-6)
    assert ((LINE - mean) @ along).abs().max().item() == pytest.approx(1.224565, abs=1e-6)
    again = moments([(COMES[:3], 1 / 4), (COMES[3:], 1 / 4)])  # the same in two parts
    assert torch.allclose(again[1], moments([(COMES, 1 / 4)])[1], atol=1e-15)


def test_any_whitening_gives_the_same_scores() -> None:
    """The symmetric one and Cholesky's."""
    rows, comes = drawn(80, 6).double(), drawn(50, 6, seed=1).double()
    mean, covariance = moments([(rows, 1 / 80)])
    _, mixture = moments([(comes, 1 / 50)])
    ridge = covariance + 1e-3 * covariance.trace() / 6 * torch.eye(6, dtype=torch.float64)
    lower = torch.linalg.cholesky(torch.linalg.inv(ridge))
    assert not torch.allclose(lower, lower.T)
    found = []
    for whiten in (whitening(covariance, 1e-3), lower):
        found.append(((comes - mean) @ whiten @ axis(whiten, mixture)).abs())
    assert (found[0] - found[1]).abs().max() < 1e-12


def test_lorex_without_poison_flags_what_its_level_says_and_finds_a_direction_that_is_new() -> None:
    """Twenty thousand clean pictures around a centre; triggered ones go where no clean one does, as few as 1 % of them."""
    source = torch.Generator().manual_seed(0)
    spread = torch.tensor([1, 0.5, 0.5, 0.3, 0.2, 0.1])
    clean, references = (F.normalize(torch.randn(n, 6, generator=source) * spread + 3, dim=-1) for n in (20_000, 20_000))
    triggered = F.normalize(clean + torch.tensor([0, 0, 0, 0, 0, 2.0]), dim=-1)
    numbers = lorex(1e-3, 0.995, seen(clean, triggered, references))
    assert numbers["lorex_flagged"] == pytest.approx(0.005, abs=0.0015)
    for share in ("at1", "at50"):
        assert numbers[f"lorex_auroc_{share}"] > 0.99  # type: ignore[operator]
        assert numbers[f"lorex_tpr_{share}"] > 0.99  # type: ignore[operator]
        assert numbers[f"lorex_fpr_{share}"] < 0.02  # type: ignore[operator]
    assert 0.3 < numbers["lorex_precision_at1"] < numbers["lorex_precision_at50"]  # type: ignore[operator]
    nothing = lorex(1e-3, 0.995, seen(clean, clean, references))
    assert nothing["lorex_auroc_at1"] == pytest.approx(0.5, abs=0.01)


def test_lorex_weighs_pictures_by_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight clean pictures and two triggered ones that may come, at a share of 0.2 the mixture is these ten."""
    found: list[Any] = []
    monkeypatch.setattr("measures.lorex.rejection", lambda *given: found.append(given[3]) or {})
    clean, triggered, references = drawn(8), drawn(8, seed=1), drawn(40, seed=2)
    lorex(1e-3, 0.9, seen(clean, triggered, references))
    comes = torch.arange(8) < 2
    scores = found[0](comes, 0.2)
    mean, covariance = moments([(references, 1 / 40)])
    whiten = whitening(covariance * 40 / 39, 1e-3)
    along = whiten @ axis(whiten, torch.cov(torch.cat([clean, triggered[:2]]).double().T))
    for rows, one in ((references, scores.references), (clean, scores.clean), (triggered, scores.triggered)):
        assert torch.allclose(one, ((rows.double() - mean) @ along).abs())
    alone = found[0](comes, 0.0)
    along = whiten @ axis(whiten, torch.cov(clean.double().T))
    assert torch.allclose(alone.clean, ((clean.double() - mean) @ along).abs())


def test_lorex_says_where_there_is_nothing_to_whiten_by() -> None:
    encoded = seen(drawn(8), drawn(8, seed=1), drawn(40, seed=2))
    assert lorex(1e-3, 0.995, encoded)
    for references, ridge, words in (
        (EYE, 1e-3, "lorex has 4 different references, of embeddings that are 4 wide"),
        (EYE.repeat(9, 1), 1e-3, "lorex has 4 different references"),
        (F.pad(drawn(40, 3), (0, 1)), 0.0, "do not spread in some direction"),
    ):
        with pytest.raises(Unmeasurable, match=words):
            lorex(ridge, 0.995, replace(encoded, references=references))
    assert lorex(1e-3, 0.995, replace(encoded, references=F.pad(drawn(40, 3), (0, 1))))
    with pytest.raises(Unmeasurable, match="as much along several axes"):
        axis(EYE.double(), EYE.double())


def test_bdet_by_hand() -> None:
    """Picture (1, 0); classes (.8, .6), (.6, .8); with the sentence (.6, .8), (0, 1): 0.2 + 0.6."""
    benign, malignant = torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    assert omega(torch.tensor([[1.0, 0.0]]).double(), benign, malignant).item() == pytest.approx(0.8)
    section = Bdet(kind="bdet", images="x", references="y", unrelated="it rains")
    assert section.prompts(["ox", "yak"], ["a {c}.", "one {c}"]) == [
        *("a ox, it rains", "one ox it rains", "a yak, it rains", "one yak it rains"),
    ]


def test_bdet_flags_pictures_that_do_not_care() -> None:
    """Clean pictures lie on their classes; the sentence moves all prompts to a fifth axis, where triggered pictures lie."""
    classes = F.pad(EYE, (0, 1))
    prompts = F.normalize(classes + torch.tensor([0, 0, 0, 0, 3.0]), dim=-1)[:, None].repeat(1, 3, 1)
    triggered = torch.tensor([0, 0, 0, 0, 1.0]).expand(8, 5)
    encoded = seen(classes.repeat(2, 1), triggered, classes, prompts)
    numbers = bdet(1.0, encoded)
    assert (numbers["bdet_auroc_at1"], numbers["bdet_fpr_at1"], numbers["bdet_tpr_at1"]) == (1, 0, 1)
    with pytest.raises(ValueError, match="bdet needs prompts"):
        bdet(1.0, replace(encoded, prompts=None))


def test_a_distance_to_samples_by_hand() -> None:
    """Picture (1, 0), samples (.6, .8), (.8, .6): half of 0.8 + 0.4."""
    near = torch.tensor([[[9.0, 9.0], [9.0, 9.0]], [[0.6, 0.8], [0.8, 0.6]]]).double()
    assert distance(torch.tensor([[1.0, 0.0]]).double(), near, torch.tensor([1])).item() == pytest.approx(0.6)


def test_samples_lie_among_the_paraphrases_pushed_on_and_are_those_of_the_seed_and_the_class() -> None:
    """Paraphrases near one direction. Samples are few thousandths apart, farther from the name than the variants' mean, and
    in the plane of their axes."""
    texts = F.normalize(drawn(1, 16) + 0.2 * drawn(10, 16, seed=1), dim=-1).double()
    found = samples(texts, 0, 3)
    assert found.shape == (SAMPLES, 16)
    assert torch.equal(found, samples(texts, 0, 3))
    for others in (samples(texts, 1, 3), samples(texts, 0, 4)):
        assert not torch.equal(found, others)
    variants = texts[1:].mean(0)
    assert (found - found.mean(0)).norm(dim=1).max() < 0.1
    assert (found.mean(0) - texts[0]).norm() > (variants - texts[0]).norm()
    off = found - texts.mean(0)
    axes = torch.linalg.svd(texts - texts.mean(0)).Vh[:9]
    assert (off - off @ axes.T @ axes).norm() < 1e-9
    same = samples(texts[:1].expand(10, 16), 0, 3)
    assert torch.allclose(same, texts[0].expand(SAMPLES, 16))


def test_points_pushed_on_keep_their_likeness_to_the_name() -> None:
    """A variant as far from the name as may be: pushed on by u, it is kept where the cosine is 0.85 to 1 of its own."""
    texts = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]], dtype=torch.float64)
    mean, basis = texts.mean(0), torch.eye(2, dtype=torch.float64)
    points = _cloud(texts, mean, basis, np.random.Generator(np.random.Philox(0))) + mean
    assert torch.allclose(points[:2], texts[1:])
    cosines = F.cosine_similarity(points[2:], texts[0], dim=-1)
    assert len(cosines) == 20
    assert (cosines > 0.85 * 0.8).all()
    assert (cosines < 0.8).all()
    assert cosines.min() < 0.75


def test_subspace_flags_pictures_that_match_no_paraphrase() -> None:
    """Names lie on axes, paraphrases beside them; clean pictures lie between, triggered ones on a name's other side."""
    side = torch.zeros(4, 10, 8)
    side[:, :, :4] = EYE[:, None]
    side[:, 1:, 4] = 0.5 + 0.1 * torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    prompts = F.normalize(side, dim=-1)
    sides = torch.tensor([[0.5, 0, 0, 0], [-0.5, 0, 0, 0]])
    clean, triggered = (F.normalize(torch.cat([EYE.repeat(4, 1), at.expand(16, 4)], 1), dim=-1) for at in sides)
    numbers = subspace(0, 1.0, seen(clean, triggered, clean[:4], prompts))
    assert (numbers["subspace_auroc_at1"], numbers["subspace_fpr_at1"], numbers["subspace_tpr_at1"]) == (1, 0, 1)
    assert numbers == subspace(0, 1.0, seen(clean, triggered, clean[:4], prompts))
    with pytest.raises(ValueError, match="needs variants"):
        subspace(0, 1.0, seen(clean, triggered, clean[:4]))
    section = Subspace(kind="subspace", images="x", references="y", variants=("a {c}", "my {c}"))
    assert section.prompts(["ox", "yak"], ["never"]) == ["ox", "a ox", "my ox", "yak", "a yak", "my yak"]


SCORES = ("k_dist", "slof", "lid", "dao")


@pytest.mark.parametrize("score", SCORES)
def test_a_picture_is_scored_among_the_references_alone(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the detector of training pairs scores a pair that is put among them, but for what the pair is to the others'
    neighbourhoods; a reference's own score is that among the others."""
    references, clean, triggered = drawn(30), drawn(8, seed=1), drawn(8, seed=2)
    found: list[Scores] = []
    monkeypatch.setattr("measures.reference_knn.rejection", lambda *given: found.append(given[3](None, 0.0)) or {})
    reference_knn(score, 4, 0.9, seen(clean, triggered, references))
    (scores,) = found
    section = ReferenceKnn(kind="reference_knn", images="x", references="y", score=score, k=4)
    assert section.least(9) == 5
    (alone,) = score_all([_section(score, 4)], Embedded(torch.arange(30), references)).values()
    assert torch.allclose(scores.references, alone)
    for rows, own in ((clean, scores.clean), (triggered, scores.triggered)):
        for row, one in zip(rows, own.tolist(), strict=True):
            far = (references.double() - row.double()).norm(dim=1).sort()
            radius, near = far.values[3], far.indices[:4]
            theirs = torch.cdist(references[near].double(), references.double()).sort(dim=1).values[:, 1:5]
            dims = -4 / (theirs / theirs[:, 3:]).log().sum(1)
            want = {
                "k_dist": radius, "slof": (radius / theirs[:, 3]).mean(), "lid": -4 / (far.values[:4] / radius).log().sum(),
                "dao": (dims * (radius / theirs[:, 3]).log()).mean(),
            }  # fmt: skip
            assert one == pytest.approx(want[score].item(), rel=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_equal_references_count_once_and_pictures_at_a_reference_have_a_score(score: Any) -> None:
    references, clean = drawn(30), drawn(16, seed=1)
    clean[:3] = references[:3]
    once = reference_knn(score, 4, 0.9, seen(clean, drawn(16, seed=2), references))
    twice = reference_knn(score, 4, 0.9, seen(clean, drawn(16, seed=2), references.repeat(2, 1)))
    assert once == twice
    assert 0 <= once["reference_knn_auroc_at1"] <= 1  # type: ignore[operator]


def test_too_few_references_that_differ_are_told() -> None:
    encoded = seen(drawn(8), drawn(8, seed=1), drawn(4, seed=2).repeat(10, 1))
    with pytest.raises(Unmeasurable, match="has 4 different references, too few for 4 neighbours"):
        reference_knn("k_dist", 4, 0.995, encoded)
    assert reference_knn("k_dist", 3, 0.995, encoded)


def test_constant_scores_are_told() -> None:
    same = drawn(1)
    encoded = seen(same.repeat(8, 1), same.repeat(8, 1), same.repeat(8, 1), drawn(40).view(4, 10, 4))
    with pytest.raises(Unmeasurable, match="bdet gives every picture the same score"):
        bdet(0.995, encoded)
    with pytest.raises(Unmeasurable, match="subspace gives every picture the same score"):
        subspace(0, 0.995, encoded)


def test_what_a_detector_is_given_must_be_there_and_make_sense() -> None:
    encoded = seen(drawn(8), drawn(8, seed=1), drawn(40, seed=2))
    with pytest.raises(ValueError, match="lorex needs references"):
        lorex(1e-3, 0.9, replace(encoded, references=None))
    with pytest.raises(ValueError, match="lorex needs the triggered pictures"):
        lorex(1e-3, 0.9, replace(encoded, triggered=None))
    with pytest.raises(ValueError, match="another class than the target"):
        lorex(1e-3, 0.9, replace(encoded, labels=torch.full((8,), 3)))
    with pytest.raises(ValidationError, match="take references from another set than is judged"):
        Lorex(kind="lorex", images="x", references="x")
    with pytest.raises(ValidationError, match=r"lacks \{c\}"):
        Subspace(kind="subspace", images="x", references="y", variants=("a {c}", "a thing"))
    section = ReferenceKnn(kind="reference_knn", images="x", references="y", k=5)
    assert (section.sets, section.clean_set, section.learns_from) == (("x", "y"), "y", None)
    assert (section.least(9), Lorex(kind="lorex", images="x", references="y").least(9)) == (6, 10)
