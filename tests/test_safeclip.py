"""SafeCLIP: which pairs are safe, what the objective makes of them; a killed run sorts them as an undisturbed one."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import antidote, journals
from sections import section
from test_run import kill_after, settings

from configs.spec import load
from data.refusal import UserError
from engine.training.safe_pairs import safe, upper_posterior
from objectives.contract import Features, ObjectiveSection, Terms
from objectives.exchange import SINGLE_RANK, Exchange
from objectives.safeclip import SafeClip

SECTION = SafeClip(kind="safeclip")


def alone(of: ObjectiveSection, given: Features) -> Terms:
    return of.build()(given, Exchange(SINGLE_RANK))


def two_groups(risky: int = 30, good: int = 70) -> np.ndarray:
    draw = np.random.default_rng(0)
    return np.concatenate([draw.normal(0.0, 0.05, risky), draw.normal(0.5, 0.08, good)])


def test_the_posterior_is_that_of_a_mixture_fitted_by_hand() -> None:
    values = two_groups()
    weights, means, spreads = np.array([0.5, 0.5]), np.array([0.0, 0.5]), np.array([0.1, 0.1])
    for _ in range(200):
        density = weights * np.exp(-(((values[:, None] - means) / spreads) ** 2) / 2) / spreads
        share = density / density.sum(1, keepdims=True)
        weights, means = share.mean(0), (share * values[:, None]).sum(0) / share.sum(0)
        spreads = np.sqrt((share * (values[:, None] - means) ** 2).sum(0) / share.sum(0))
    assert upper_posterior(values) == pytest.approx(share[:, 1], abs=1e-3)
    order = np.random.default_rng(1).permutation(len(values))
    assert upper_posterior(values[order]) == pytest.approx(upper_posterior(values)[order], abs=1e-9)


def test_pairs_are_first_told_apart_by_the_mixture_and_then_grow_by_their_cosines() -> None:
    cosines, order = two_groups(), np.arange(100)[::-1]
    cosines[99] = np.nan
    first = safe(cosines, order, SECTION, None, 16)
    assert set(np.flatnonzero(first)) == set(range(30, 99))
    for before, after in ((69, 70), (84, 85), (85, 85), (90, 90)):
        chosen = safe(cosines, order, SECTION, before, 16)
        assert chosen.sum() == after
        assert cosines[chosen].min() >= np.nanmax(cosines[~chosen])
    tied = safe(np.full(10, 0.3), np.arange(10)[::-1], SECTION.model_copy(update={"growth": 0.2}), 2, 2)
    assert np.flatnonzero(tied).tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("cosines", [np.full(50, 0.25), np.full(50, np.nan)], ids=["alike", "none"])
def test_pairs_that_cant_be_told_apart_are_refused(cosines: np.ndarray) -> None:
    with pytest.raises(
        UserError, match="0 of .* pairs safe with a posterior of 0.9, fewer than a batch of 16; warm up longer"
    ):
        safe(cosines, np.arange(50), SECTION, None, 16)


def test_each_part_by_hand() -> None:
    """Both pools hold e1 and e2, so each row's nearest is itself. Pairs 1 and 2 are safe, pair 3 is risky: alone in its
    part, whose loss is 0; the safe ones have rows (s, 0) with s = ln 3: ln (4/3)."""
    pool = torch.cat([torch.eye(2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)])
    memory = {name: pool for name in ("safeclip.pictures", "safeclip.captions")} | {"safeclip.seen": torch.tensor([2])}
    of = section({"kind": "safeclip", "unimodal": 1, "pool": 3})
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    scale = {"scale": torch.tensor([math.log(math.log(3))], dtype=torch.float64)}
    flags = torch.tensor([False, False, True])
    given = Features((rows, rows), (rows, rows), scale, flags=flags, memory=memory, epoch=3)
    terms = alone(of, given)
    assert terms["mmcl"].item() == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert terms["within"].item() == pytest.approx(0.0, abs=1e-12)
    warm = alone(of, replace(given, epoch=1))
    assert set(warm) == {"loss", "within"}
    assert warm["within"].item() == pytest.approx((2 * math.log(7 / 3) + math.log(5 / 3)) / 3, abs=1e-12)
    assert set(alone(of, replace(given, epoch=2))) == {"loss", "mmcl"}
    assert [of.rate_share(epoch) for epoch in (1, 2, 3)] == [1.0, 0.01, 1.0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pretrain.objective={kind: safeclip}", "epochs is 2, but objective safeclip would only warm up; give at least 7"),
        (
            "pretrain.objective={kind: sum, parts: [{objective: {kind: safeclip, unimodal: 0}}, "
            "{objective: {kind: unlearn, flags: x}}]}",
            "different ways which pairs are flagged",
        ),
    ],
)
def test_what_would_not_be_safeclip_is_refused(spec: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(spec, [setting])


@pytest.mark.slow
def test_a_killed_run_and_one_on_two_ranks_sort_the_pairs_as_an_undisturbed_one(spec: Path) -> None:
    words = ["pretrain.objective={kind: safeclip, unimodal: 1, posterior: 0.4, pool: 40, growth: 0.1, slow: 0.5}",
             "pretrain.epochs=4", "clean=null", "data.augment.image=simclr"]  # fmt: skip
    found: dict[str, Any] = {}
    starts: dict[str, Callable[[Path], None]] = {
        "whole": lambda path: None,
        "killed": lambda path: kill_after(12 * 2 + 6 + 4, path, settings(*words)),
    }
    for name, begin in starts.items():
        home = spec.parent / name
        home.mkdir()
        path = home / spec.name
        path.write_text(spec.read_text())
        begin(path)
        out = antidote("--spec", str(path), *settings(*words), cwd=home)
        assert out.returncode == 0, out.stderr
        assert ("goes on at step" in out.stderr) == (name == "killed")
        (run,) = (home / "runs/tiny").glob("pretrain-*")
        found[name] = (run / "weights.safetensors").read_bytes(), journals(home / "runs/tiny")
    assert found["killed"] == found["whole"]
    home = spec.parent / "two"
    home.mkdir()
    out = antidote("--spec", str(spec), *settings(*words), cwd=home, processes=2)
    assert out.returncode == 0, out.stderr
    (whole,), (two,) = found["whole"][1].values(), journals(home / "runs/tiny").values()
    for ours, theirs in zip(two, whole, strict=True):
        numbers = {name: value for name, value in theirs.items() if isinstance(value, float) and name != "grad_norm"}
        assert {name: ours[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-3)
