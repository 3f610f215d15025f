"""Columns of the open matrix: the numbers of each kind by hand, its marks, the rows that it stands in."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from found import audit, homes, probed, rejected, scored
from submissions import ATTACK, CLEANERS, submission

from records.detection import DetectionJson
from records.json_file import write_json
from report.__main__ import main
from report.columns.registry import KINDS
from report.matrix_page import COLUMNS
from report.matrix_runs import Run, models_of

ONE: dict[str, Any] = {"cleaners": {"x": CLEANERS["CleanCLIP"]}, "rates": (1e-3,)}
NONE: dict[str, Any] = {"cleaners": {}}


def cells(tmp_path: Path, kind: str, *studies: Path) -> list[dict[str, Any]]:
    """The cells of one kind in matrix.json."""
    assert main(["--matrix", *map(str, studies), "--out", str(tmp_path / "matrix")]) == 0
    every: list[dict[str, Any]] = json.loads((tmp_path / "matrix/matrix.json").read_text())
    assert all(set(cell) - {"costs", "studies"} <= set(COLUMNS) for cell in every)
    return [cell for cell in every if cell["kind"] == kind]


def columns_in(page: str) -> int:
    """How many columns the page's matrix has."""
    head = page.partition('<table class="matrix stack">')[2].partition("</thead>")[0]
    return head.count("<th") - 1 - head.count("<thead")


def test_kinds_have_names_and_numbers_of_their_own() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_a_detectors_numbers_are_those_by_hand(tmp_path: Path) -> None:
    """AUROC 0.75, 1 and 0.5; of two flagged 1, 2 and 1 are poisoned; 3, 2 and 3 of the twins' 200 have that score."""
    study, out = submission(tmp_path / "s", **ONE), tmp_path / "s.tar.xz"
    scored(study, (99, 0, 198))
    (cell,) = cells(tmp_path, "detector", study)
    assert (cell["column"], cell["called"], cell["tried"]) == ("k_dist", ["k_dist"], "budget: share 0.01")
    assert [cell[name] for name in ("auroc", "auroc_low", "auroc_high")] == pytest.approx([0.75, 0.5, 1.0])
    assert (cell["precision"], cell["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (cell["twin_flagged"], cell["twin_flagged_by_rule"]) == (pytest.approx(0.04 / 3), pytest.approx(0.01))
    assert (cell["seeds"], cell["marks"], cell["data"]) == (3, [], "world/*.tar, measured on demo")
    assert len(cell["pretrain_runs"]) == len(cell["twin_runs"]) == 3
    assert cell["clean_runs"] == []
    assert cell["costs"]["scoring"].startswith("Encoding 600 pairs took 4.5 s")
    run = f"runs/s/{cell['pretrain_runs'][0]}"
    assert cell["commands"][:2] == ["run s", f"python -m engine.detect --run {run} --detector k_dist --budget share=0.01"]
    page = (tmp_path / "matrix/index.html").read_text()
    assert "0.750 [0.500, 1.000] in 3 of 3 seeds" in page.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")
    assert page.count('<th scope="row"><b>') == 1, "it stands in the row of its cleanings"
    assert main(["--pack", str(study), str(out)]) == 0
    assert [{**one, "studies": []} for one in cells(tmp_path, "detector", out)] == [{**cell, "studies": []}]


def test_a_detector_says_what_it_lacks(tmp_path: Path) -> None:
    few, bare = submission(tmp_path / "few", seeds=(0, 1), **NONE), submission(tmp_path / "bare", **NONE, twin=False)
    scored(few, (99, 0), keeps_order=False, of_twin=False)
    scored(bare, (99, 0, 198))
    of_few, of_bare = cells(tmp_path, "detector", few)[0], cells(tmp_path, "detector", bare)[0]
    stated = "its numbers are stated by the submitter: the records hold too little to compute them anew"
    assert of_few["marks"] == ["2 seeds, fewer than 3", "no twin's pairs were scored", stated]
    assert of_few["auroc"] == pytest.approx(0.875)
    assert of_bare["marks"] == ["no twin", "no twin's pairs were scored"]
    assert of_bare["twin_flagged"] is None
    some = submission(tmp_path / "some", **NONE)
    scored(some, (99, 0, 198))
    first = homes(some, "pretrain")[0]
    record = DetectionJson.read(first)
    assert record is not None
    record.model_copy(update={"detectors": [record.detectors[0].model_copy(update={"twin": {}})]}).write(first)
    assert cells(tmp_path, "detector", some)[0]["marks"] == ["the twin's pairs were scored in 2 of 3"]


def test_seeds_are_joined_and_other_settings_are_another_cell(tmp_path: Path) -> None:
    first, second, third = (submission(tmp_path / f"{seed}", seeds=(seed,), **NONE) for seed in range(3))
    for study, above in ((first, 99), (second, 0), (third, 198)):
        scored(study, (above,))
    (cell,) = cells(tmp_path, "detector", first, second)
    assert (cell["seeds"], cell["auroc"]) == (2, pytest.approx(0.875))
    for path in third.glob("*/detect/detection.json"):
        other = json.loads(path.read_text().replace('"k": 16', '"k": 8'))
        other.pop("sha256")
        write_json(path, other)
    both = cells(tmp_path, "detector", first, third)
    assert [cell["auroc"] for cell in both] == pytest.approx([0.75, 0.5])
    assert [cell["tried"] for cell in both] == ["budget: share 0.01; k 16", "budget: share 0.01; k 8"]
    assert {cell["column"] for cell in both} == {"k_dist"}


def test_what_depends_on_no_clean_set_stands_in_every_row_of_its_pre_training(tmp_path: Path) -> None:
    first, second = submission(tmp_path / "a", seeds=(0,), **ONE), submission(tmp_path / "b", seeds=(0,), pairs=800, **ONE)
    third = submission(tmp_path / "c", seeds=(0,), objectives=("mmcl_ssl",), **NONE)
    for study in (first, second, third):
        scored(study, (99,))
    assert len(cells(tmp_path, "detector", first, second, third)) == 2
    page = (tmp_path / "matrix/index.html").read_text()
    assert page.count('<th scope="row"><b>') == 3
    assert columns_in(page) == 2
    links = re.findall(r'href="#(cell-\d+)"', page)
    assert len(links) == 5
    assert len(set(links)) == 4
    assert all(page.count(f'id="{link}"') == 1 for link in links)


def test_the_twin_of_a_model_that_pairs_were_left_out_for_is_that_of_the_whole() -> None:
    def run(stage: str, name: str, pretrain: dict[str, Any]) -> Any:
        whole = {"data": {"pretrain": pretrain}, "attack": {"target": "x"} if stage == "pretrain" else {}, "model": {}}
        decided: Any = SimpleNamespace(whole=whole, data=whole["data"], attack=whole["attack"])
        end = SimpleNamespace(measured={"attack": [{"target": "x", "trigger": None}]})
        record: Any = SimpleNamespace(run=SimpleNamespace(run=name, stage=stage), end=end)
        return Run(record, decided, "", SimpleNamespace())  # type: ignore[arg-type]

    less = run("pretrain", "a", {"shards": "s", "without": {"random": 0.1}})
    every = [less, run("twin", "b", {"shards": "s"}), run("twin", "c", {"shards": "t"})]
    models = models_of([less], every)
    assert [[one.record.run.run for one in ones] for ones in (models.starts, models.twins)] == [["a"], ["b"]]


def test_a_run_with_other_scores_in_another_study_is_marked_and_the_first_counts(tmp_path: Path) -> None:
    first, second = submission(tmp_path / "a", **NONE), submission(tmp_path / "b", **NONE)
    scored(first, (99, 0, 198))
    scored(second, (99, 0, 99))
    (cell,) = cells(tmp_path, "detector", first, second)
    assert cell["auroc"] == pytest.approx(0.75)
    run = cell["pretrain_runs"][2]
    assert cell["marks"] == [f"{run} has other numbers in {second}; those of the study given first count"]


def test_markup_in_what_was_found_stays_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    study = submission(tmp_path / "s", seeds=(0,), **ONE, attack={**ATTACK, "target": bad})
    scored(study, (0,))
    for home in [*homes(study, "pretrain"), *homes(study, "twin")]:
        content = json.loads((home / "detect/detection.json").read_text().replace("k_dist", bad))
        del content["sha256"]
        content["detectors"][0]["kind"] = "foreign"
        write_json(home / "detect/detection.json", content)
    (home,) = homes(study, "pretrain")
    audit(home, 0.05, (), [bad], settings={bad: bad})
    assert {cell["column"] for cell in cells(tmp_path, "detector", study)} == {f"{bad}, of another program"}
    page = (tmp_path / "matrix/index.html").read_text()
    assert "<img" not in page
    assert "&lt;img" in page


STOOD = (10.0, 12.0, 11.0, 13.0, 2.0)  # its largest anomaly index is 6.07
ALIKE = (10.0, 12.0, 11.0, 13.0, 9.0)  # 1.35


def test_an_audits_numbers_are_those_by_hand(tmp_path: Path) -> None:
    """Of five stamps four are smaller than all five twins', so p is 1/6; one is larger than one of them: p is 2/6."""
    study = submission(tmp_path / "s", seeds=range(5), **ONE)
    for home, share in zip(homes(study, "twin"), (0.2, 0.3, 0.4, 0.5, 0.6), strict=True):
        audit(home, share, ALIKE)
    for home, share in zip(homes(study, "pretrain"), (0.05, 0.05, 0.05, 0.25, 0.01), strict=True):
        audit(home, share, STOOD, ["banana"])
    decree, scan = cells(tmp_path, "audit", study)
    assert [cell["column"].partition(":")[0] for cell in (decree, scan)] == ["decree", "targets"]
    assert [decree[name] for name in ("backdoored", "audited", "level", "clean_models")] == [4, 5, pytest.approx(1 / 6), 5]
    assert [scan[name] for name in ("backdoored", "audited", "clean_models")] == [5, 5, 5]
    assert (decree["value"], decree["clean_value"], decree["stamp_asr"]) == (pytest.approx(8.2), pytest.approx(40.0), 1.0)
    assert (scan["value"], scan["clean_value"]) == (pytest.approx(6.07, abs=0.005), pytest.approx(1.35, abs=0.005))
    assert decree["value_low"] < 8.2 < decree["value_high"]
    assert decree["marks"] == scan["marks"] == []
    assert decree["sentence"].startswith("4 of 5 called backdoored at p ≤ 0.167, against 5 clean models")
    page = (tmp_path / "matrix/index.html").read_text()
    assert page.count('<th scope="row"><b>') == 1


def test_an_audit_says_what_it_lacks(tmp_path: Path) -> None:
    few, told, bare = (submission(tmp_path / name, **NONE, twin=name != "bare") for name in ("few", "told", "bare"))
    for at, home in enumerate(homes(few, "twin")):
        audit(home, 0.2 + 0.1 * at)
    audit(homes(few, "twin")[2], 0.2, (), settings={"seed": 1})  # asked something else
    null = {"decree": {"value": -0.05, "clean": [-0.2] * 5, "p": 1 / 6, "smallest": 1 / 6}}
    for home in homes(few, "pretrain"):
        audit(home, 0.05, (), ["banana"])
    for home in homes(told, "pretrain"):
        audit(home, 0.05, (), ["banana"], null=null)
    for home in homes(bare, "pretrain"):
        audit(home, 0.05, (), ["banana"])
    (cell,) = cells(tmp_path, "audit", few)
    assert (cell["backdoored"], cell["level"]) == (3, pytest.approx(1 / 3))
    assert cell["marks"] == ["2 clean models audited, fewer than 5, which can show no p below 0.333"]
    (cell,) = cells(tmp_path, "audit", told)
    assert (cell["backdoored"], cell["clean_models"]) == (3, 5)
    assert cell["marks"] == ["the clean models' numbers are stated by the submitter: no twin was audited alike"]
    (cell,) = cells(tmp_path, "audit", bare)
    assert (cell["backdoored"], cell["audited"], cell["level"]) == (None, 0, None)
    assert cell["marks"] == ["no twin", "0 clean models audited, fewer than 5"]
    assert cell["sentence"].startswith("none can be called, against 0 clean models")


def test_numbers_at_test_time_are_those_by_hand(tmp_path: Path) -> None:
    study = submission(tmp_path / "s", **ONE)
    for home, auroc in zip(homes(study, "pretrain"), (0.7, 0.8, 0.9), strict=True):
        rejected(home, auroc=auroc, tpr=0.6, fpr=0.01, precision=0.006 / (0.006 + 0.0099))
    for home in homes(study, "twin")[:2]:
        rejected(home, auroc=0.5, tpr=0.0, fpr=0.0)
    rejected(homes(study, "twin")[2], {"level": 0.9}, auroc=0.6, tpr=0.0, fpr=0.0)  # asked something else
    (cell,) = cells(tmp_path, "test time", study)
    assert (cell["column"], cell["seeds"]) == ("lorex", 3)
    assert [cell[f"test_auroc{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.8, 0.7, 0.9])
    assert [cell[name] for name in ("test_tpr", "test_fpr")] == pytest.approx([0.6, 0.01])
    assert [cell[name] for name in ("twin_test_auroc", "twin_test_fpr")] == [0.5, 0.0]
    assert [cell[name] for name in ("asr_after_rejecting", "top1_after_rejecting")] == [0.5, 0.9]
    assert cell["marks"] == ["not measured on a twin of each seed"]


@pytest.mark.parametrize("first", ["with", "without"])
def test_what_a_later_study_found_in_the_same_runs_stands_with_its_twins_and_its_command(tmp_path: Path, first: str) -> None:
    """The study given first may have looked for nothing in models that both hold, twins among them."""
    names = ("with", "without")
    found, bare = (submission(tmp_path / name, **ONE) for name in names)
    for kind, auroc in (("pretrain", 0.8), ("twin", 0.5)):
        for home in homes(found, kind):
            rejected(home, auroc=auroc, tpr=0.0, fpr=0.0)
    for home in homes(found, "twin"):
        audit(home, 0.3, ALIKE)
    for home in homes(found, "pretrain"):
        audit(home, 0.05, STOOD, ["banana"])
    given = (found, bare) if first == "with" else (bare, found)
    (cell,) = cells(tmp_path, "test time", *given)
    assert (cell["test_auroc"], cell["twin_test_auroc"]) == (pytest.approx(0.8), pytest.approx(0.5))
    assert (cell["marks"], cell["commands"], cell["studies"]) == ([], ["run with"], [str(found)])
    audits = cells(tmp_path, "audit", *given)
    assert [cell["clean_models"] for cell in audits] == [3] * len(audits)
    assert all("run without" not in cell["commands"] for cell in audits)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"auroc": 1.2}, "auroc 1.2, which is no share"),
        ({"tpr": "all"}, "tpr all, which is no share"),
        ({"precision": 0.9}, "precision 0.9, which TPR 0.6 and FPR 0.01 do not give"),
        ({"tpr_fpr1": 0.1}, "tpr_fpr1 0.1, whose curve has 0"),
        ({"roc": [0.0, 1.0]}, "roc [0.0, 1.0], which is no curve over 11 false positive rates"),
        ({"roc": [0.5, 0.4] + [0.6] * 9}, "which is no curve"),
        ({"roc": [1.0] * 11, "tpr_fpr1": 1.0, "tpr_fpr5": 1.0}, "auroc 0.7, whose curve has at least 1"),
    ],
)
def test_numbers_at_test_time_that_cannot_be_are_refused(
    tmp_path: Path, rates: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = submission(tmp_path / "s", seeds=(0,), **NONE)
    (home,) = homes(study, "pretrain")
    rejected(home, **{"auroc": 0.7, "tpr": 0.6, "fpr": 0.01, **rates})
    assert main(["--matrix", str(study), "--out", str(tmp_path / "matrix")]) == 2
    assert f"{home}/metrics.jsonl says at epoch 0 of lorex, 1 % triggered, " in (said := capsys.readouterr().err)
    assert words in said


@pytest.mark.parametrize("first", ["with", "without"])
def test_probes_of_a_later_study_stand_with_its_command_and_what_they_cost(tmp_path: Path, first: str) -> None:
    found, bare = (submission(tmp_path / name, seeds=(0, 1), **ONE, clean_twin=True) for name in ("with", "without"))
    probed(found, [{25: (0.81, 0.3)}, {25: (0.7, 0.1)}])
    (cell,) = cells(tmp_path, "after", *((found, bare) if first == "with" else (bare, found)))
    assert (cell["commands"], cell["studies"]) == (["run with"], [str(found)])
    assert cell["costs"]["probes"].startswith("4 runs have taken ")


def test_rebound_and_relearning_advantage_are_those_by_hand(tmp_path: Path) -> None:
    """The cleaned models stand at ASR 1 %, their twins at 0: with 25 pairs, which both were tuned with,
    advantages of 0.8 - 0.3 and of 0.69 - 0.1."""
    study = submission(tmp_path / "s", seeds=(0, 1), **ONE, clean_twin=True)
    probed(study, [{0: (0.02, 0.0), 25: (0.81, 0.3)}, {0: (0.04, 0.0), 5: (0.2, 0.1), 25: (0.7, 0.1)}])
    (cell,) = cells(tmp_path, "after", study)
    assert (cell["column"], cell["called"], cell["seeds"]) == ("CleanCLIP", ["x"], 2)
    assert cell["advantage"] == pytest.approx((0.5 + 0.59) / 2)
    assert (cell["rebound"], cell["twin_rebound"]) == (pytest.approx((0.8 + 0.69) / 2), pytest.approx(0.2))
    assert (cell["clean_tuned_asr"], cell["cleaned_asr"]) == (pytest.approx(0.03), pytest.approx(0.01))
    assert "poisoned pairs to half the start's ASR: 25; the twin's: over 25" in cell["sentence"]
    assert cell["marks"] == ["2 seeds, fewer than 3"]
    page = (tmp_path / "matrix/index.html").read_text()
    assert page.count("probes, fingerprints") == 1
