"""Detectors of poisoned training pairs: the hand-worked line of five points, ties, duplicates, blocks, ranks."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from measures.detectors import approximate, neighbourhood, points, search
from measures.detectors.abl import Abl
from measures.detectors.budget import Budget, flagged
from measures.detectors.clip_score import ClipScore
from measures.detectors.contract import ALONE, CannotScore, Embedded
from measures.detectors.dao import Dao
from measures.detectors.k_dist import KDist
from measures.detectors.lid import Lid
from measures.detectors.neighbourhood import NeighbourSection
from measures.detectors.ranking import curve, histogram, number_at, numbers, ranked
from measures.detectors.registry import DEFAULT, AnyDetector, score_all
from measures.detectors.slof import Slof

SECTIONS = get_args(get_args(AnyDetector)[0])
LOCAL = [kind for kind in SECTIONS if issubclass(kind, NeighbourSection)]
LINE = torch.tensor([[0.0], [1.0], [2.5], [4.5], [12.0]])
HAND = {
    "textbook": {
        "k_dist": [2.5, 1.5, 2, 3.5, 9.5],
        "slof": [1.458333, 0.675, 0.952381, 2.041667, 3.732143],
        "lid": [2.182713, 4.932607, 6.952119, 3.573881, 8.460639],
        "dao": [2.035511, -1.557493, -0.290489, 4.034951, 7.200515],
    },
    "published": {
        "k_dist": [4.5, 3.5, 2.5, 4.5, 11],
        "slof": [2.4, 1.866667, 1.458333, 2.625, 4.321429],
        "dao": [0.172298, 0.121344, 0.076618, 0.199633, 0.296699],
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small work waits for its threads longest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(pairs: int, width: int = 8, seed: int = 0, **more: Any) -> Embedded:
    """Pairs about ten captions, as unit rows."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, width, generator=draw)
    at = torch.randint(10, (pairs,), generator=draw)
    images = F.normalize(centres[at] + 0.5 * torch.randn(pairs, width, generator=draw), dim=1)
    texts = F.normalize(centres[at] + 0.2 * torch.randn(pairs, width, generator=draw), dim=1)
    order = torch.randint(1 << 62, (pairs,), generator=draw)
    losses = torch.rand(10, pairs, generator=draw)
    return Embedded(order, images, texts, 3 * images, 3 * texts, losses, **more)


def rows_in(embedded: Embedded, rows: torch.Tensor) -> Embedded:
    """The same pairs in another order."""
    parts = [getattr(embedded, name)[rows] for name in ("order", "images", "texts", "raw_images", "raw_texts")]
    return Embedded(*parts, embedded.losses[:, rows])


def every(**settings: Any) -> list[Any]:
    """A section of every kind, those of neighbourhoods with these settings."""
    out = [kind(kind=get_args(kind.model_fields["kind"].annotation)[0], **settings) for kind in LOCAL]
    return [*out, ClipScore(kind="clip_score"), Abl(kind="abl")]


@pytest.mark.parametrize("form", HAND)
def test_five_points_on_a_line(form: Any) -> None:
    embedded = Embedded(torch.arange(5), raw_images=LINE)
    kinds = {"k_dist": KDist, "slof": Slof, "lid": Lid, "dao": Dao}
    sections = [kinds[kind](kind=kind, k=2, raw=True, form=form, batch=5) for kind in HAND[form]]
    found = score_all(sections, embedded)
    for kind, scores in HAND[form].items():
        assert found[kind].tolist() == pytest.approx(scores, abs=2e-6), kind


def test_cosine_and_early_loss_by_hand() -> None:
    embedded = Embedded(
        torch.arange(2), torch.tensor([[1.0, 0], [0.6, 0.8]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]]),
        losses=torch.tensor([[4.0, 2.0], [2.0, torch.nan], [9.0, 9.0]]),
    )  # fmt: skip
    found = score_all([ClipScore(kind="clip_score"), Abl(kind="abl", epochs=2)], embedded)
    assert found["clip_score"].tolist() == pytest.approx([-0.6, -0.8])
    assert found["abl"].tolist() == [-3.0, -2.0]
    embedded.losses = torch.tensor([[4.0, torch.nan]])
    assert score_all([Abl(kind="abl", epochs=1)], embedded)["abl"].isnan().tolist() == [False, True]
    with pytest.raises(CannotScore, match=r"detector abl: epochs is 2, but losses of 1 epochs were noted"):
        score_all([Abl(kind="abl", epochs=2)], embedded)


def naive(section: Any, rows: torch.Tensor, first: int) -> torch.Tensor:
    """The textbook's formulas word by word, of the first rows among all, in float64."""
    distances = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    near, at = (part[:, : section.k] for part in distances.sort())
    radius = near[:, -1]
    lid = -section.k / torch.log(near / radius[:, None]).sum(1)
    ratio = radius[:, None] / radius[at]
    values = {"k_dist": radius, "slof": ratio.mean(1), "lid": lid, "dao": (lid[at] * ratio.log()).mean(1)}
    return values[section.kind][:first]


@pytest.mark.parametrize("among", ["pictures", "pairs"])
def test_blocks_give_what_the_formulas_give(among: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (points, "ROWS", 32),
        (search, "ROWS", 32),
        (search, "AT_ONCE", 1000),
        (neighbourhood, "QUERIES", 50),
    ):
        monkeypatch.setattr(module, name, value)
    embedded = drawn(300)
    rows = embedded.images if among == "pictures" else torch.cat([embedded.images, embedded.texts])
    sections = every(k=5, among=among)[: len(LOCAL)]
    for section, scores in zip(sections, score_all(sections, embedded).values(), strict=True):
        torch.testing.assert_close(scores, naive(section, rows, 300), rtol=1e-5, atol=1e-5)


class Rank:
    """One of several processes, a thread each, that add what they have."""

    def __init__(self, rank: int, size: int, met: threading.Barrier, parts: list[torch.Tensor]) -> None:
        self.rank, self.size, self.met, self.parts = rank, size, met, parts

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of all."""
        self.parts[self.rank] = part
        self.met.wait(20)
        out = torch.stack(self.parts).sum(0)
        self.met.wait(20)
        return out

    def beat(self) -> None:
        """Nobody waits."""


def shared(sections: list[Any], pairs: Callable[[], Embedded], size: int) -> list[dict[str, torch.Tensor]]:
    """What each of so many ranks gives."""
    met, parts = threading.Barrier(size), [torch.empty(0)] * size
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: score_all(sections, pairs(), Rank(rank, size, met, parts)), range(size)))


@pytest.mark.parametrize(
    "settings", [{}, {"form": "published", "batch": 64}, {"references": 40}, {"among": "pairs"}, {"raw": True}]
)
def test_neither_order_nor_ranks_count(settings: dict[str, Any]) -> None:
    embedded, sections = drawn(130), every(k=5, **settings)
    alone = score_all(sections, embedded)
    rows = torch.randperm(130, generator=torch.Generator().manual_seed(1))
    for title, scores in score_all(sections, rows_in(embedded, rows)).items():
        torch.testing.assert_close(scores, alone[title][rows], rtol=1e-5, atol=1e-6)
    for size in (2, 3):
        for found in shared(sections, lambda: drawn(130), size):
            for title, scores in found.items():
                assert torch.equal(scores, alone[title]), (title, size)


def test_pairs_none_of_which_is_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block without any reference is compared like the others; more references than pairs are all of them."""
    embedded = drawn(60)
    sections = every(k=3, references=8)[: len(LOCAL)]
    whole = score_all(sections, embedded)
    monkeypatch.setattr(neighbourhood, "QUERIES", 4)
    for title, scores in score_all(sections, embedded).items():
        torch.testing.assert_close(scores, whole[title])
    among = torch.argsort(embedded.order)[:8]
    distances = torch.cdist(embedded.images.double(), embedded.images[among].double())
    distances[among, torch.arange(8)] = torch.inf
    torch.testing.assert_close(whole["k_dist"], distances.sort(dim=1).values[:, 2], rtol=1e-5, atol=1e-5)
    more = score_all(every(k=3, references=99)[:1], embedded)["k_dist"]
    assert torch.equal(more, score_all(every(k=3)[:1], embedded)["k_dist"])


def test_equal_rows_are_one_point() -> None:
    """Doubles would make radii 0; they get the score of the pair that they equal, and are counted."""
    embedded = drawn(120)
    doubled = rows_in(embedded, torch.cat([torch.arange(120), torch.full((30,), 7), torch.arange(10)]))
    for settings in ({}, {"among": "pairs"}):
        sections = every(k=4, **settings)[: len(LOCAL)]
        once, twice = score_all(sections, embedded), score_all(sections, doubled)
        for title in once:
            torch.testing.assert_close(twice[title][:120], once[title])
            assert (twice[title][120:150] == twice[title][7]).all()
            assert doubled.notes[title]["merged"] == (40 if not settings else 80)
    drawn_few = score_all([KDist(kind="k_dist", k=4, references=159)], doubled)["k_dist"]
    assert (drawn_few > 0).all()


def test_rows_with_equal_sums_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "row_sums", lambda rows: np.zeros(len(rows), np.uint64))
    rows = torch.tensor([[1.0, 2], [3, 4], [1, 2]])
    found = points.merged((rows,))
    assert found.merged <= 1
    assert torch.equal(found.take(found.of_first(torch.arange(len(found)), 3)), rows)


def test_equidistant_points_have_a_bounded_dimension() -> None:
    embedded = Embedded(torch.arange(6), torch.eye(6))
    found = score_all([Lid(kind="lid", k=3), Slof(kind="slof", k=3), Dao(kind="dao", k=3)], embedded)
    assert found["lid"].tolist() == [1e9] * 6
    assert found["slof"].tolist() == pytest.approx([1.0] * 6)
    assert found["dao"].tolist() == pytest.approx([0.0] * 6, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 8}, "k is 8, but there are 8 different pairs to compare with, each beside 7 others; lower k"),
        ({"k": 8, "form": "published"}, "a batch of the published form has 10 pairs; lower k or raise batch"),
        ({"k": 3, "references": 3}, "k is 3, but there are 3 different pairs"),
    ],
)
def test_fewer_pairs_than_neighbours(settings: dict[str, Any], words: str) -> None:
    embedded = rows_in(drawn(12), torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 7, 7]))
    if settings["k"] == 8 and "form" in settings:
        settings = {**settings, "k": 9}
        words = words.replace("k is 8", "k is 9")
    with pytest.raises(CannotScore, match=words):
        score_all([KDist(kind="k_dist", **settings)], embedded)


def test_what_ranks_pairs_is_found_once() -> None:
    """Detectors that look at the same neighbourhoods give what each gives by itself."""
    embedded = drawn(150)
    together = score_all(DEFAULT, embedded)
    for section in DEFAULT:
        assert torch.equal(section.build()(embedded, ALONE), together[section.title])


def test_auroc_counts_ties_half() -> None:
    found = numbers(ranked(np.array([0.9, 0.5, 0.5, 0.2, 0.1]), np.array([True, True, False, False, False])))
    assert found["auroc"] == pytest.approx(11 / 12)
    assert found["average_precision"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert found["fpr95"] == pytest.approx(1 / 3)
    assert found["error95"] == pytest.approx(0.6 / 3)


def test_error_weighs_each_kind_with_its_own_share() -> None:
    """TPR 0.95 and FPR 0.10 at 1 % poison: 0.01 * 0.05 + 0.99 * 0.10."""
    poisoned = np.arange(10_000) < 100
    scores = np.where(poisoned, 2.0, 0.0)
    scores[:5], scores[100:1090] = 0.0, 2.0
    found = numbers(ranked(scores, poisoned))
    assert found["fpr95"] == pytest.approx(0.1)
    assert found["error95"] == pytest.approx(0.0995)


def test_constant_scores_rank_nothing() -> None:
    found = numbers(ranked(np.ones(1000), np.arange(1000) < 30))
    assert found["auroc"] == 0.5
    assert found["precision_0.01"] == pytest.approx(0.03)
    assert found["recall_0.1"] == pytest.approx(0.1)


def test_numbers_are_those_of_pairs_compared_one_by_one() -> None:
    draw = np.random.default_rng(0)
    poisoned = draw.random(2000) < 0.05
    scores = draw.integers(0, 12, 2000) + 3.0 * poisoned
    found = numbers(ranked(scores, poisoned))
    away = scores[poisoned][:, None] - scores[~poisoned][None]
    assert found["auroc"] == pytest.approx(((away > 0) + 0.5 * (away == 0)).mean())
    precision = [poisoned[scores >= score].mean() for score in scores[poisoned]]
    assert found["average_precision"] == pytest.approx(np.mean(precision))
    points_ = curve(ranked(draw.random(2000) + poisoned, poisoned))
    assert points_[0] == (0, 0)
    assert points_[-1] == (1, 1)
    assert len(points_) <= 202
    assert all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(points_))
    edges, clean, marked = histogram(scores, poisoned)
    assert (len(edges), sum(clean), sum(marked)) == (61, 2000 - poisoned.sum(), poisoned.sum())


def test_a_ranking_needs_both_classes_and_finite_scores() -> None:
    for scores, poisoned in ((np.ones(3), np.zeros(3, bool)), (np.array([1, np.nan]), np.array([True, False]))):
        with pytest.raises(ValueError, match=r"needs poisoned and clean|not finite"):
            ranked(scores, poisoned)


def test_budgets() -> None:
    scores, order = np.array([1.0, 5, 5, 5, np.nan, 2]), np.array([0, 9, 3, 4, 0, 0], np.uint64)
    assert flagged(scores, order, Budget(count=2)).pairs.tolist() == [2, 3]
    assert flagged(scores, order, Budget(share=0.2)).pairs.tolist() == [2]
    assert flagged(scores, order, Budget(count=99)).pairs.tolist() == [2, 3, 1, 5, 0]
    assert number_at(0.001, 10) == 1
    assert flagged(np.full(5, np.nan), order[:5], Budget(count=2)).pairs.tolist() == []
    found = flagged(np.array([0.0, 1, 2, 3, 100]), np.arange(5).astype(np.uint64), Budget(outlier=3.5))
    assert found.pairs.tolist() == [4]
    assert found.threshold == pytest.approx(2 + 3.5 * 1.4826)
    assert flagged(np.ones(5), np.arange(5).astype(np.uint64), Budget(outlier=3.5)).pairs.tolist() == []
    for settings in ({}, {"share": 0.1, "count": 2}):
        with pytest.raises(ValueError, match="give one of them"):
            Budget(**settings)


def test_beyond_so_many_pairs_neighbours_are_sought_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is nearly all, the distances are exact, and the recall that is told is the true one."""
    pytest.importorskip("faiss")
    embedded = drawn(1500)
    section = Slof(kind="slof", k=8)
    exact = score_all([section], embedded)["slof"]
    assert "recall" not in embedded.notes["slof"]
    monkeypatch.setattr(neighbourhood, "EXACT", 1000)
    near = score_all([section], embedded)["slof"]
    told = embedded.notes["slof"]["recall"]
    assert 0.9 < told <= 1
    assert (near - exact).abs().median() < 1e-6
    monkeypatch.setattr(approximate, "PROBED", 1)
    score_all([section], embedded)
    assert embedded.notes["slof"]["recall"] < told


def test_without_faiss_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbourhood, "EXACT", 100)
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    with pytest.raises(CannotScore, match=r"detector slof: 120 rows are too many .* faiss is not installed; .* references"):
        score_all([Slof(kind="slof")], drawn(120))
    assert len(score_all([Slof(kind="slof", references=50)], drawn(120))["slof"]) == 120
