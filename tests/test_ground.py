"""When a verdict has ground: a truth table of what was measured, and what the headline then says."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.study.worker import gate_lines
from measures.frontier import FrontierPoint
from report.ground import Rates, at_chance, ground, too_few
from report.headline import gate_of, headline
from report.load import read_study
from report.markdown import section
from report.page import page_of
from report.points import Counts, Origin, Panel, PointInfo, panels
from report.tables import verdict_json
from report.verdict import judge, make_report

SET = Counts(pictures=1000, others=900, classes=10, floor=0.02)
OLD = Counts(pictures=1000, others=900, least_classes=6)  # of a journal that tells neither classes nor floor
FEW = Counts(pictures=10, others=9, classes=3, floor=0.0)
TWIN = Rates(0.8, 0.02, SET)


@pytest.mark.parametrize(
    ("start", "twin", "state", "said"),
    [
        (Rates(0.80, 0.95, SET), TWIN, "firm", ""),
        (Rates(0.80, 0.95, SET), None, "firm", ""),  # against the untriggered floor
        (Rates(0.80, 0.95, SET._replace(floor=0.5)), None, "firm", ""),
        (Rates(0.80, 0.95, SET), Rates(0.8, 0.95, SET), "unplanted", "not above that of the twin, 95.0 % [93.4, 96.2]"),
        (Rates(0.80, 0.95, SET), Rates(0.8, 0.935, SET), "unplanted", "twin"),  # intervals meet
        (Rates(0.80, 0.12, SET._replace(floor=0.11)), None, "unplanted", "without the trigger, 11.0 %"),
        (Rates(0.80, 0.12, SET._replace(floor=0.11)), TWIN, "firm", ""),  # a twin counts for more than the floor
        (Rates(0.80, 0.04, SET), Rates(0.8, 0.0, SET), "unplanted", "4.0 % [2.9, 5.5] before any cleaning"),
        (Rates(0.107, 0.083, SET._replace(classes=7)), None, "unlearned", "not above chance, 14.3 %"),
        (Rates(0.11, 0.95, SET), TWIN, "unlearned", "95.0 % at chance accuracy is no attack"),
        (Rates(0.10, 1.0, SET._replace(floor=1.0)), TWIN, "collapsed", "answers the target for everything"),
        (Rates(0.10, 0.99, SET._replace(floor=0.98)), None, "collapsed", "without it (98.0 %)"),
        (Rates(0.10, 1.0, SET._replace(classes=50, floor=1.0)), None, "collapsed", "chance, 10.0 %"),  # the target's share
        (Rates(0.10, 1.0, SET._replace(classes=50, one_set=False)), TWIN, "firm", ""),  # whose share is of other pictures
        (Rates(0.60, 1.0, FEW), None, "unlearned", "10 pictures are too few to tell"),
        (Rates(1.00, 1.0, FEW), None, "firm", ""),
        (Rates(0.80, 0.95, OLD), None, "firm", ""),  # at most 222 of 900 could be taken for the target
        (Rates(0.80, 0.23, OLD), None, "unknown", "not recorded whether ASR 23.0 %"),
        (Rates(0.80, 0.23, OLD), TWIN, "firm", ""),
        (Rates(0.15, 0.95, OLD), TWIN, "unknown", "of how many classes"),  # chance is at most 1 in 6, perhaps 1 in 1,000
        (Rates(0.10, 1.00, OLD), TWIN, "unlearned", "no attack"),  # the target's share, which needs no classes
        (Rates(0.80, 0.95, Counts()), TWIN, "unknown", "of how many pictures"),
        (Rates(0.80, 0.95, SET), Rates(0.8, 0.02, Counts()), "unknown", "do not tell whether ASR"),
        (Rates(0.80, 0.95, SET._replace(pictures=1e300)), TWIN, "unknown", "of how many pictures"),
        (Rates(float("nan"), 0.95, SET), TWIN, "unknown", "of how many pictures"),
        (Rates(0.90, 0.95, SET._replace(classes=1)), TWIN, "unlearned", "chance, 100.0 %"),
    ],
)  # fmt: skip
def test_ground_is_as_the_table_says(start: Rates, twin: Rates | None, state: str, said: str) -> None:
    found = ground(start, twin)
    assert found.state == state
    assert said in found.why
    assert bool(found.why) == (state != "firm")
    assert bool(found.look) == (state in ("unlearned", "collapsed", "unplanted"))


def test_a_trigger_that_may_fool_any_model_needs_a_twin(tmp_path: Path) -> None:
    """An optimised pattern or a concept: without a twin its fragility would be sold as a backdoor."""
    assert ground(GOOD, None, fools=True).state == "unknown"
    assert (
        "nothing tells whether ASR 95.0 % [93.4, 96.2] is more than the trigger does" in ground(GOOD, None, fools=True).why
    )
    assert ground(GOOD, TWIN, fools=True).state == "firm"
    assert ground(GOOD, Rates(0.8, 0.93, SET), fools=True).state == "unplanted"
    of = {"top1": 0.8, "pictures": 1000, "classes": 10, "others": 900, "others_2": 900, "asr_floor": 0, "asr_floor_2": 0}
    numbers = {**of, "asr": 0.95, "asr_2": 0.9}
    folder = study(tmp_path / "s", {"before": numbers, "after": numbers})
    attack = {"trigger": {"kind": "patch"}, "also": [{"trigger": {"kind": "tensor", "file": "x.safetensors"}}]}
    (folder / "pretrain-a" / "spec.json").write_text(json.dumps({"attack": attack}))
    first, second = panels(read_study(folder))
    assert [first.fools, second.fools] == [False, True]
    assert [headline(shown).status for shown in (first, second)] == ["poisoned", "open"]
    assert "without a twin nothing tells" in headline(second).sentence


def test_a_cleaned_model_may_be_at_chance_or_measured_on_too_little() -> None:
    assert [at_chance(Rates(top1, 0.0, SET)) for top1 in (0.10, 0.11, 0.13)] == [True, True, False]
    assert not at_chance(Rates(0.1, 0.0, OLD))
    assert [too_few(Rates(0.9, 0.0, SET._replace(others=others))) for others in (72, 73, 74, None)] == [
        True, False, False, False,
    ]  # fmt: skip


def panel(*seeds: tuple[Rates, tuple[float, float]], twins: tuple[Rates, ...] = (TWIN,), done: int = 9) -> Panel:
    """A panel of seeds, each a start and one cleaned point (top-1, ASR)."""
    starts = [FrontierPoint(s.asr, s.top1, Origin(f"pretrain-{n}", n, s.counts)) for n, (s, _) in enumerate(seeds)]
    points = [
        FrontierPoint(asr, top1, PointInfo(f"clean-{n}", 1, 1e-4, "CleanCLIP", start, n, counts=start.label.counts))
        for n, (start, (_, (top1, asr))) in enumerate(zip(starts, seeds, strict=True))
    ]
    return Panel(
        "MMCL", starts, [FrontierPoint(t.asr, t.top1, Origin("twin-0", 0, t.counts)) for t in twins], points, done, 9
    )


GOOD, BAD, NEVER = Rates(0.8, 0.95, SET), Rates(0.11, 0.09, SET), Rates(0.8, 0.02, SET)
CASES: list[tuple[Panel, str, str]] = [
    (panel((GOOD, (0.79, 0.01))), "cleaned", "95.0 % [93.4, 96.2] to 1.0 % [0.5, 1.9] at top-1 79.0 % [76.4, 81.4]"),
    (panel((GOOD, (0.60, 0.01))), "dear", "a loss of 20.0 points"),
    (panel((GOOD, (0.79, 0.40))), "poisoned", "lowest was 40.0 % [36.8, 43.2]"),
    (panel((GOOD, (0.11, 0.00))), "destroyed", "its top-1 is at most 11.0 % [9.2, 13.1], chance"),
    (panel((GOOD, (0.79, 0.01)), done=3), "cleaned", "So far: Cleaning"),
    (panel((BAD, (0.79, 0.01))), "unlearned", "Too little training of the MMCL model: top-1 11.0 %"),
    (panel((NEVER, (0.79, 0.0))), "unplanted", "The backdoor was never planted in the MMCL model: ASR was 2.0 %"),
    (panel((GOOD, (0.79, 0.01)), twins=(GOOD,)), "unplanted", "JPEG"),
    (panel((GOOD, (0.79, 0.01)), twins=()), "cleaned", "from ASR"),
    (panel((Rates(1, 1, FEW), (1, 0.0)), twins=()), "open", "9 pictures are too few to show ASR ≤ 5 %"),
    (panel((GOOD, (0.79, 0.01)), (GOOD, (0.77, 0.02))), "cleaned", "in 2 of 2 seeds, at top-1 78.0 % [77.0, 79.0]"),
    (panel((GOOD, (0.79, 0.01)), (BAD, (0.77, 0.0))), "partly", "Too little training of the MMCL model in 1 of 2 seeds"),
    (panel((GOOD, (0.79, 0.90)), (BAD, (0.77, 0.0))), "poisoned", "No cleaning run reached"),
    (panel((GOOD, (0.79, 0.90)), (GOOD, (0.77, 0.4))), "poisoned", "lowest was 40.0 % [36.8, 43.2] at top-1 77.0 %"),
    (panel((BAD, (0.79, 0.0)), (BAD, (0.77, 0.0))), "unlearned", "in 2 of 2 seeds: top-1 11.0 % [9.2, 13.1] is not above"),
    (panel((BAD, (0.79, 0.0)), (NEVER, (0.77, 0.0))), "open", "never planted in the MMCL model in 1 of 2 seeds"),
    (panel((GOOD, (0.11, 0.01)), (GOOD, (0.77, 0.02))), "partly", "1 cleaned to ASR ≤ 5 % are at chance"),
    (panel((GOOD, (0.11, 0.01)), (GOOD, (0.1, 0.02))), "destroyed", "above chance on the MMCL model in any of 2 seeds"),
    (panel((Rates(0.8, 0.95, Counts()), (0.79, 0.01))), "open", "1.0 % at top-1 79.0 % (start 80.0 %); the journals do not"),
    (Panel("MMCL", [], [], [], 1, 1, without="retrieval"), "open", "Only retrieval was measured"),
    (Panel("MMCL", [], [], [], 1, 9, cleanings=(0, 8)), "open", "So far: No cleaning run has been measured yet"),
    (panel((GOOD, (0, 0)))._replace(points=[]), "uncleaned", "The MMCL model is not cleaned in this study: ASR 95.0 %"),
    (panel((GOOD, (0, 0)))._replace(points=[], cleanings=(0, 8)), "open", "No cleaning run has been measured yet"),
    (panel((BAD, (0, 0)))._replace(points=[]), "unlearned", "Too little training of the MMCL model: top-1 11.0 %"),
    (panel((NEVER, (0.79, 0.0)))._replace(left_out=True), "prevented", "The MMCL model has no backdoor: ASR was 2.0 %"),
    (panel((GOOD, (0.79, 0.01)))._replace(left_out=True), "cleaned", "95.0 % [93.4, 96.2] to 1.0 % [0.5, 1.9]"),
]  # fmt: skip


@pytest.mark.parametrize(("shown", "status", "said"), CASES)
def test_nothing_is_called_cleaned_that_has_no_ground(shown: Panel, status: str, said: str) -> None:
    verdict = headline(shown)
    assert verdict.status == status
    assert said in verdict.sentence
    assert ("from ASR" in verdict.sentence) <= (status in ("cleaned", "dear", "partly", "open"))


def study(folder: Path, numbers: dict[str, Any]) -> Path:
    """One pre-training and one cleaning of it, with the numbers of `before` and `after`."""
    runs = [
        {"run": "pretrain-a", "stage": "pretrain", "pretrain_objective": "mmcl", "seed": 0},
        {"run": "clean-a", "stage": "clean", "start": "pretrain-a", "pretrain_objective": "mmcl", "cleaner": "c", "seed": 0},
    ]
    for run, moments in (("pretrain-a", ["before"]), ("clean-a", ["before", "after"])):
        (folder / run).mkdir(parents=True)
        rows = [{"kind": "measure", "images": "x", "epoch": at, "step": at, **numbers[m]} for at, m in enumerate(moments)]
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / run / "finished.json").write_text("{}")
    (folder / "study.json").write_text(json.dumps({"name": "s", "runs": runs}))
    return folder


def test_each_attack_that_a_model_carries_has_a_ground_and_a_verdict_of_its_own(tmp_path: Path) -> None:
    of = {"top1": 0.8, "pictures": 1000, "classes": 10, "others": 900, "others_2": 800, "others_3": 900}
    before = {**of, "asr": 0.9, "asr_floor": 0.02, "asr_2": 0.95, "asr_floor_2": 0.01, "asr_3": 0.1, "asr_floor_3": 0.09}
    after = {**of, "asr": 0.01, "asr_floor": 0.02, "asr_2": 0.9, "asr_floor_2": 0.01, "asr_3": 0.01, "asr_floor_3": 0.09}
    found = panels(read_study(study(tmp_path / "s", {"before": before, "after": after})))
    assert [shown.title for shown in found] == ["MMCL · attack 1", "MMCL · attack 2", "MMCL · attack 3"]
    assert [headline(shown).status for shown in found] == ["cleaned", "poisoned", "unplanted"]
    assert "95.0 % [93.3, 96.3]" in headline(found[1]).sentence  # of its own 800 pictures


def test_a_model_that_was_pre_trained_without_the_poisoned_pairs_has_nothing_to_clean(tmp_path: Path) -> None:
    """It is not told that its backdoor was never planted, nor to look at the number of poisoned pairs."""
    numbers = {"top1": 0.8, "pictures": 1000, "classes": 10, "others": 900, "asr": 0.01, "asr_floor": 0.01}
    folder = study(tmp_path / "s", {"before": numbers, "after": numbers})
    [planted] = panels(read_study(folder))
    assert headline(planted).status == "unplanted"
    assert "took weakly" in gate_of(planted).note
    content = json.loads((folder / "study.json").read_text())
    content["runs"][0]["without"] = {"way": "plan", "whole": "pretrain-b"}
    (folder / "study.json").write_text(json.dumps(content))
    [shown] = panels(read_study(folder))
    assert headline(shown).status == "prevented"
    assert headline(shown).sentence.endswith("no backdoor came of the others: there is nothing to clean.")
    assert gate_of(shown).note == ""


def test_several_targets_are_named_wherever_people_read_of_them(tmp_path: Path) -> None:
    """Of a trigger with several in the tables, whose journals keep numbers of classes; of several attacks in the titles."""
    of = {"top1": 0.8, "pictures": 1000, "classes": 10, "others": 900, "asr": 0.9, "asr_floor": 0.02, "asr_2": 0.5}
    numbers = {**of, "asr_of_3": 0.75, "asr_of_7": 0.25, "targets": {"3": "banana", "7": "a <b>"}}
    folder = study(tmp_path / "s", {"before": numbers, "after": numbers})
    aims = {"target": "banana", "trigger": {"kind": "multi"}, "also": [{"target": "crane", "trigger": {"kind": "solid"}}]}
    (folder / "pretrain-a" / "spec.json").write_text(json.dumps({"attack": aims}))
    read = read_study(folder)
    assert [row["ASR (banana)"] for row in read.results.rows] == [0.75] * 3
    assert {"ASR (banana)", "ASR (a <b>)"} < set(read.results.columns)
    report = make_report(read)
    page = page_of(report, [])
    assert ">ASR (banana), %</button>" in page
    assert ">ASR (a &lt;b&gt;), %</button>" in page
    assert page.count(">75.00</td>") == page.count(">25.00</td>") == 3
    assert "asr_of_" not in page.replace((folder / "study.json").read_text(), "")
    assert [panel.title for panel in panels(read)] == ["MMCL · attack 1", "MMCL · attack 2 (crane)"]
    assert any("A model carries several attacks" in note for note in report.notes)
    plain = read_study(study(tmp_path / "old", {"before": of | {"asr_of_3": 0.5}, "after": of}))
    assert "asr_of_3" in plain.results.columns


def test_an_attack_that_is_measured_on_a_set_of_its_own_has_a_panel(tmp_path: Path) -> None:
    """As a concept is: ASR 2 is of other pictures, with their own count and floor."""
    folder = study(tmp_path / "s", {"before": {}, "after": {}})
    of = {"top1": 0.8, "pictures": 1000, "classes": 10, "others": 900, "asr": 0.9, "asr_floor": 0.02}
    concept = {"others_2": 300, "asr_2": 0.6, "asr_floor_2": 0.01}
    for run in ("pretrain-a", "clean-a"):
        rows = [
            {"kind": "measure", "images": images, "epoch": at, "step": at, **numbers}
            for at in range(1 if run == "pretrain-a" else 2)
            for images, numbers in (("x", of), ("red", concept))
        ]
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = panels(read_study(folder))
    assert [first.starts[0].asr, second.starts[0].asr] == [0.9, 0.6]
    assert second.starts[0].label.counts == Counts(1000, 300, 10, 0.01, 2, one_set=False)
    assert [headline(shown).status for shown in (first, second)] == ["poisoned", "poisoned"]


def test_a_study_of_retrieval_alone_is_not_called_unmeasured(tmp_path: Path) -> None:
    numbers = {"text_r1": 0.5, "retrieval_asr1": 0.9, "retrieval_floor1": 0.1}
    (shown,) = panels(read_study(study(tmp_path / "s", {"before": numbers, "after": numbers})))
    assert headline(shown) == ("open", headline(shown).sentence)
    assert "Only retrieval was measured" in headline(shown).sentence


def test_no_difference_counts_a_seed_without_ground() -> None:
    one, other = panel((GOOD, (0.79, 0.01)), (GOOD, (0.77, 0.02))), panel((GOOD, (0.70, 0.01)), (BAD, (0.11, 0.0)))
    judged = judge([one, other._replace(title="SSL")])
    (difference,) = judged.differences
    assert difference.value == pytest.approx(0.78 - 0.70)
    assert "2 of 2 and 1 of 1 seeds" in difference.sentence
    assert any("1 of 4 seeds of a cleaner have no ground" in note for note in judged.notes)


WEAK = Rates(0.8, 0.3, SET)
GATES: list[tuple[Panel, tuple[int, int], str]] = [
    (panel((GOOD, (0.79, 0.01))), (1, 1), ""),
    (panel((Rates(0.8, 0.5, SET), (0.79, 0.01))), (1, 1), ""),  # half of them is enough
    (panel((WEAK, (0.79, 0.01))), (0, 1), "The attack on the MMCL model took weakly: ASR 30.0 % [27.1, 33.1] is under 50 %"),
    (panel((GOOD, (0.79, 0.01)), (WEAK, (0.7, 0.0)), (NEVER, (0.7, 0.0))), (1, 3), "weakly in 2 of 3 runs: ASR 30.0 %"),
    (panel((BAD, (0.79, 0.01))), (0, 0), ""),  # that it has learned nothing is said instead
    (panel((Rates(0.8, 0.1, Counts()), (0.79, 0.01))), (0, 1), "ASR 10.0 % is under 50 %"),
]  # fmt: skip


@pytest.mark.parametrize(("shown", "numbers", "said"), GATES)
def test_an_attack_that_did_not_take_is_marked_with_the_usual_causes(
    shown: Panel, numbers: tuple[int, int], said: str
) -> None:
    found = gate_of(shown)
    assert (found.took, found.of) == numbers
    assert said in found.note
    assert bool(found.note) == bool(said)
    assert all(cause in found.note for cause in ("attack.poison.fraction", "attack.poison.count", "JPEG") if said)


def test_the_gate_stands_on_the_page_in_markdown_in_the_verdict_and_at_the_end_of_a_run(tmp_path: Path) -> None:
    of = {"top1": 0.8, "pictures": 1000, "classes": 10, "others": 900, "others_2": 900, "asr_floor": 0, "asr_floor_2": 0}
    numbers = {**of, "asr": 0.95, "asr_2": 0.3}
    folder = study(tmp_path / "s", {"before": numbers, "after": {**numbers, "asr_2": 0.01}})
    report = make_report(read_study(folder))
    words = "The attack on the MMCL · attack 2 model took weakly: ASR 30.0 % [27.1, 33.1] is under 50 %"
    assert any(words in note for note in report.notes)
    assert words in page_of(report, []).replace("\xa0", " ").replace("&nbsp;", " ")
    assert "took weakly: ASR 30.0 %" in section(report, [])
    verdicts = json.loads(verdict_json(report.judged))["verdicts"]
    assert [one["attack"]["took"] for one in verdicts] == [1, 0]
    assert words in verdicts[1]["attack"]["note"]
    first, second = gate_lines(folder / "pretrain-a")
    assert first == "the attack on pretrain-a took: ASR 95.0 % at top-1 80.0 %"
    assert second.startswith("The attack on pretrain-a, attack 2, took weakly: ASR 30.0 % at top-1 80.0 % is under 50 %")


def test_differences_say_that_they_count_seeds_whose_ground_is_not_known() -> None:
    """A trigger that may fool any model, and no twin: nothing tells whether there was a backdoor."""
    told = {}
    for fools in (False, True):
        ways = [
            panel(*((GOOD, (top1, 0.01)) for _ in range(4)), twins=())._replace(title=way, fools=fools)
            for way, top1 in (("MMCL", 0.79), ("MMCL+SSL", 0.6))
        ]
        told[fools] = judge(ways)
    assert [one.value for one in told[True].differences] == [one.value for one in told[False].differences] != []
    assert not any("ground is not known" in note for note in told[False].notes)
    (note,) = [note for note in told[True].notes if "ground is not known" in note]
    assert note.startswith("Differences count 8 of 8 seeds of a cleaner whose ground is not known: without a twin nothing")
