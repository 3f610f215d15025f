"""What was found of runs beside their training, in submissions: it travels, is the run's own, and is computed anew."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from found import audit, homes, scored
from submissions import ATTACK, CLEANERS, submission

from data.refusal import UserError
from engine.inversion.subject import _aims
from measures.detectors.order import order_of, read_order
from measures.detectors.ranking import curve, numbers, ranked
from records.audit import Null
from records.json_file import DIGEST, write_json
from report.__main__ import main
from report.findings import targets_of
from report.submission import read_submission

SMALL: dict[str, Any] = {"cleaners": {"x": CLEANERS["CleanCLIP"]}, "rates": (1e-3,)}
SIZES = (10.0, 12.0, 11.0, 13.0, 2.0)  # anomaly index of the last 6.07 (Neural Cleanse)


def test_an_order_by_hand() -> None:
    """Scores 9 | 8 8 (one poisoned) | 7 | 6 | 5 5 of the second attack."""
    scores, owners = np.array([9.0, 8, 8, 7, 6, 5, 5]), np.array([-1, 0, -1, -1, -1, 1, 1])
    assert order_of(scores, owners) == "1 1/1/0 2 0/0/2"
    order = read_order("1 1/1/0 2 0/0/2")
    assert numbers(order.ranking())["auroc"] == pytest.approx((2.5 + 0 + 0) / 12)
    assert numbers(order.ranking(0))["auroc"] == pytest.approx(2.5 / 4)
    assert numbers(order.ranking(1))["auroc"] == 0
    assert [order.caught(count) for count in range(8)] == [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (1, 1), (2, 2), (3, 3)]
    assert order_of(np.array([1.0, 0.0]), np.array([-1, -1])) == "2"


@pytest.mark.parametrize("values", [3, 40, 10**6])
def test_an_order_gives_all_numbers(values: int) -> None:
    draw = np.random.default_rng(values)
    scores, owners = draw.integers(0, values, 500).astype(float), draw.choice([-1, -1, -1, -1, 0, 2], 500)
    text = order_of(scores, owners)
    order = read_order(text)
    assert numbers(order.ranking()) == pytest.approx(numbers(ranked(scores, owners >= 0)))
    for attack in (0, 2):
        part = (owners == attack) | (owners < 0)
        assert numbers(order.ranking(attack)) == pytest.approx(numbers(ranked(scores[part], owners[part] >= 0)))
    assert len(text) < 9 * len(scores)
    with pytest.raises(ValueError, match="needs poisoned and clean"):
        order.ranking(1)
    assert curve(order.ranking())[-1] == (1, 1)


@pytest.mark.parametrize("text", ["", " 1", "1  2", "1/", "-1", "0", "1 0/0", "9" * 13, "1//1", "1.5", "1\n", "1/" * 200])
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no order|empty group"):
        read_order(text)


def test_an_order_of_too_many_groups_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measures.detectors.order.MOST", 3)
    assert order_of(np.arange(3.0), np.array([0, -1, 0])) == "0/1 1 0/1"
    assert order_of(np.arange(4.0), np.array([0, -1, 0, -1])) == ""
    with pytest.raises(ValueError, match="too many"):
        read_order("1 0/1 1 0/1")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One seed, its twin and a cleaning; pairs scored, models audited."""
    folder = submission(tmp_path / "s", seeds=(0,), **SMALL)
    scored(folder, (99,))
    audit(homes(folder, "twin")[0], 0.2, SIZES)
    audit(homes(folder, "clean")[0], 0.3, (), ["banana"])
    audit(homes(folder, "pretrain")[0], 0.05, SIZES, ["banana"])
    return folder


def test_a_packed_study_holds_what_was_found(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.tar.xz"
    assert main(["--pack", str(study), str(out)]) == 0
    assert out.stat().st_size < 8_000
    whole, packed = (
        {one.run.run: (one.detection, one.audit) for one in read_submission(path).study.records} for path in (study, out)
    )
    assert packed == whole
    detection, found = packed[homes(study, "pretrain")[0].name]
    assert detection is not None
    assert detection.detectors[0].order == "0/1 99 0/1 99"
    assert detection.detectors[0].numbers["auroc"] == pytest.approx(0.75)
    assert found is not None
    assert found.targets is not None
    assert found.targets.index == pytest.approx(6.07, abs=0.005)


Change = Callable[[dict[str, Any]], Any]


def changed(study: Path, stage: str, file: str, change: Change) -> str:
    """What is said of the study once a record is changed and its digest made anew."""
    path = homes(study, stage)[0] / file
    content = json.loads(path.read_text())
    content.pop(DIGEST)
    before = copy.deepcopy(content)
    change(content)
    assert content != before
    write_json(path, content)
    with pytest.raises(UserError) as error:
        read_submission(study)
    assert f"{path} " in str(error.value)
    assert "Traceback" not in str(error.value)
    return str(error.value)


def first(**values: Any) -> Change:
    """Changes the first detector."""
    return lambda content: content["detectors"][0].update(values)


DETECTIONS: list[tuple[Change, str]] = [
    (lambda content: content.update(run="pretrain-000000000000"), "is of pretrain-000000000000, and lies in pretrain-"),
    (lambda content: content.update(weights="other"), "is of other weights than"),
    (lambda content: content.update(pairs=300), "says 300 pairs, 2 poisoned; the run's card says 200 and 2"),
    (lambda content: content.update(poisoned=3), "says 200 pairs, 3 poisoned"),
    (
        lambda content: content.update(twin="twin-000000000000"),
        "is told beside twin-000000000000, which is not the run's twin",
    ),
    (lambda content: content["files"].update({"scores.jsonl": "0" * 64}), "has another SHA-256 of scores.jsonl"),
    (lambda content: content["detectors"].append(content["detectors"][0]), "has two detectors k_dist"),
    (first(settings={"k": 17}), "settings {'k': 17}, which were not asked for"),
    (first(kind="slof"), "which were not asked for"),
    (lambda content: content["asked"].update(detectors=[]), "which were not asked for"),
    (first(flagged=3), "3 flagged of 200, which is not the budget"),
    (lambda content: content["asked"].update(budget={"count": 7}), "2 flagged of 200, which is not the budget"),
    (lambda content: content["asked"].update(budget={"share": float("inf")}), "2 flagged of 200, which is not the budget"),
    (lambda content: content["asked"].update(budget={"share": float("nan")}), "2 flagged of 200, which is not the budget"),
    (first(scored=201), "that it scored 201 pairs of 200"),
    (first(scored=199), "a histogram of 198 clean and 2 poisoned pairs, which are not those scored"),
    (lambda content: content["detectors"][0]["numbers"].update(auroc=0.76), "auroc 0.76, which computed anew is 0.75"),
    (
        lambda content: content["detectors"][0]["numbers"].update({"recall_0.1": 1.0}),
        "recall_0.1 1.0, which computed anew is",
    ),
    (lambda content: content["detectors"][0]["numbers"].pop("fpr95"), "fpr95 None, which computed anew is 0.5"),
    (lambda content: content["detectors"][0]["numbers"].update(mine=1.0), "mine 1.0, which computed anew is None"),
    (first(poisoned_flagged=2), "2 poisoned among 2 flagged, of which its order has 1 to 1"),
    (first(poisoned_flagged=None), "None poisoned among 2 flagged"),
    (first(order="0/2 198"), "auroc 0.75"),
    (first(order="0/1 98 0/1 99"), "an order of 197 clean and 2 poisoned pairs, which are not those of its histogram"),
    (first(order="x"), "an order of pairs that can't be read: it is no order of pairs,"),
    (first(order="200"), "an order of pairs that can't be read: a ranking needs poisoned and clean pairs"),
    (first(curve=[[0, 0], [0.1, 0.9], [1, 1]]), "a point of its curve, (0.1, 0.9), which its order does not give"),
    (first(attacks={"2": {"auroc": 1.0}}), "numbers of attacks 2; its order is of 1"),
    (first(attacks={"1": {"auroc": 1.0}}), "of attack 1 auroc 1.0, which computed anew is 0.75"),
    (
        lambda content: content["detectors"][0]["twin"].update(threshold=0.5),
        "0.5 of the twin's pairs flagged (threshold), of",
    ),
    (lambda content: content["detectors"][0]["twin"].update(rule=0.02), "0.02 of the twin's pairs flagged (rule), of"),
    (lambda content: content["detectors"][0]["twin"].update({"0.1": 0.0}), "0 of the twin's pairs flagged (0.1), of"),
    (lambda content: content["detectors"][0]["numbers"].update(auroc=float("nan")), "is damaged (detectors.0.numbers.auroc"),
    (lambda content: content.update(detectors="none"), "is damaged (detectors"),
    (first(clean=[198]), "is damaged (detectors.0: "),
    (first(edges=[1.0]), "is damaged (detectors.0: "),
]


@pytest.mark.parametrize(("change", "words"), DETECTIONS)
def test_scores_that_are_not_the_runs_own_are_refused(study: Path, change: Change, words: str) -> None:
    assert words in changed(study, "pretrain", "detect/detection.json", change)


def test_numbers_without_an_order_are_shares(study: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        content["detectors"][0].pop("order")
        content["detectors"][0]["numbers"]["auroc"] = 1.5

    assert "auroc 1.5, which is no share" in changed(study, "pretrain", "detect/detection.json", without)


def test_scores_of_a_cleaning_are_refused(study: Path) -> None:
    (start,), (clean,) = homes(study, "pretrain"), homes(study, "clean")
    (clean / "detect").mkdir()
    content = json.loads((start / "detect/detection.json").read_text())
    content.pop(DIGEST)
    write_json(clean / "detect/detection.json", {**content, "run": clean.name, "weights": clean.name})
    with pytest.raises(UserError, match="scores the pairs of a cleaning"):
        read_submission(study)


AUDITS: list[tuple[Change, str]] = [
    (lambda content: content.update(run=None), "is of no run, and lies in pretrain-"),
    (lambda content: content.update(run="twin-000000000000"), "is of twin-000000000000, and lies in pretrain-"),
    (lambda content: content.update(digest="other"), "is of other weights than pretrain-"),
    (lambda content: content.update(model="RN50"), "is of a RN50, and the run's model is tiny"),
    (lambda content: content.update(targets_planted=[]), "says targets []; by the run's spec they are ['banana']"),
    (lambda content: content.update(targets_planted=None), "says targets None; by the run's spec they are ['banana']"),
    (lambda content: content["decree"].update(size=0.0), "a stamp of size 0 and 0.05 of a picture"),
    (
        lambda content: content["decree"].update(conspicuous=False),
        "says of decree conspicuous False, with 0.05 of a picture",
    ),
    (lambda content: content["targets"].update(index=9.0), "index 9.0, which computed anew is 6.07"),
    (lambda content: content["targets"].update(index=None), "index None, which computed anew is 6.07"),
    (lambda content: content["targets"]["classes"][0].update(index=9.0), "class 0 9.0, which computed anew is 0.67"),
    (lambda content: content["targets"]["classes"][0].update(size=1.0), "says of targets class 0"),
    (
        lambda content: content["targets"].update(flagged=[]),
        "says of targets [] above 2; the classes' sizes give ['class 4']",
    ),
    (
        lambda content: content.update(null={"decree": {"value": -0.05, "clean": [-0.2], "p": 0.1, "smallest": 0.5}}),
        "p 0.1,",
    ),
    (
        lambda content: content.update(null={"decree": {"value": -0.5, "clean": [-0.2], "p": 1, "smallest": 0.5}}),
        "value -0.5,",
    ),
    (
        lambda content: content.update(null={"texts": {"value": 1, "clean": [0], "p": 0.5, "smallest": 0.5}}),
        "value 1.0, which",
    ),
    (lambda content: content.update(null={"decree": {"value": -0.05, "clean": [], "p": 1, "smallest": 1}}), "p 1.0, which"),
    (lambda content: content["decree"].update(share=float("inf")), "is damaged (decree.share"),
]


@pytest.mark.parametrize(("change", "words"), AUDITS)
def test_an_audit_that_is_not_the_runs_own_is_refused(study: Path, change: Change, words: str) -> None:
    assert words in changed(study, "pretrain", "audit/audit.json", change)


def test_an_audit_with_its_p_is_taken(study: Path) -> None:
    (home,) = homes(study, "pretrain")
    null = Null(value=-0.05, clean=[-0.2, -0.01], p=2 / 3, smallest=1 / 3)
    record = audit(home, 0.05, SIZES, ["banana"], null={"decree": null})
    taken = {one.run.run: one.audit for one in read_submission(study).study.records}
    assert taken[home.name] == record
    assert "by the run's spec they are []" in changed(
        study, "twin", "audit/audit.json", lambda content: content.update(targets_planted=["banana"])
    )


LEFTOVER = {"clean": {"leftover": 25}}


@pytest.mark.parametrize(
    ("decides", "targets"),
    [
        ({"attack": ATTACK, "pretrain": {"start": None}}, ["banana"]),
        ({"attack": {**ATTACK, "also": [{**ATTACK, "target": "moon"}]}, "pretrain": {}}, ["banana", "moon"]),
        ({"attack": {**ATTACK, "poison": {"count": 0}}, "pretrain": {}}, []),
        ({"attack": {}, "pretrain": {}}, []),
        ({"attack": ATTACK, "pretrain": {}, "start": "twin"}, []),
        ({"attack": ATTACK, "pretrain": {}, "clean": {"transform": {"kind": "fresh"}}}, []),
        ({"attack": ATTACK, "pretrain": {"start": {"path": "x.pt"}}}, None),
        ({"attack": ATTACK, "clean": {}}, None),
        ({"attack": {**ATTACK, "also": 5}, "pretrain": {}}, ["banana"]),
        # poisoned pairs that stayed in the clean set, or that a cleaned twin was tuned with
        ({"attack": ATTACK, "pretrain": {}, "start": "twin", "clean": {}, "data": LEFTOVER}, ["banana"]),
        ({"attack": ATTACK, "pretrain": {}, "clean": {"transform": {"kind": "fresh"}}, "data": LEFTOVER}, ["banana"]),
        ({"attack": ATTACK, "clean": {}, "data": LEFTOVER}, ["banana"]),
        ({"attack": {}, "pretrain": {}, "clean": {}, "data": LEFTOVER}, []),
        ({"attack": ATTACK, "pretrain": {}, "start": "twin", "clean": {}, "data": {"clean": {"leftover": 0}}}, []),
    ],
)
def test_targets_are_those_of_the_spec(decides: dict[str, Any], targets: list[str] | None) -> None:
    assert targets_of(decides) == targets
    if decides["attack"] in ({}, ATTACK):  # the others are no attacks that a spec can have
        aims = _aims(decides)
        assert (None if aims is None else [aim.target for aim in aims]) == targets
