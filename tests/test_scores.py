"""The numbers of a verdict, their files and words: worked out by hand on made-up journals of three seeds."""

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import samples

import report.verdict
from measures.frontier import FrontierPoint
from report.__main__ import main
from report.load import read_study
from report.points import Panel, PointInfo, panels
from report.scores import BEST, POINTS, Number, Score, chosen_by, drop, mean_of, relative_drop
from report.tables import escape, verdict_csv, verdict_json, verdict_tex
from report.verdict import differences, judge
from report.write import write_report

Row = tuple[float, float]  # top1, asr


def journals(folder: Path, ways: dict[str, list[list[Row]]], classes: int | None = None, **more: dict[int, Any]) -> Path:
    """A study: of each way a list of seeds, each the points of one cleaning after its start, which is the first. `more`
    gives further numbers of the measures, on other images, by epoch."""
    runs: list[dict[str, Any]] = []
    of = {"pictures": 100, "others": 90} | ({"classes": classes} if classes else {})
    for objective, seeds in ways.items():
        for seed, rows in enumerate(seeds):
            begin, clean = f"pretrain-{objective}-{seed}", f"clean-{objective}-{seed}"
            facts = {"pretrain_objective": objective, "seed": seed}
            runs += [{"run": begin, "stage": "pretrain", **facts}]
            runs += [{"run": clean, "stage": "clean", "start": begin, "clean_objective": "cleanclip", "rate": 1e-4, **facts}]
            for run, points in ((begin, rows[:1]), (clean, rows)):
                (folder / run).mkdir(parents=True)
                lines: list[dict[str, Any]] = []
                for epoch, (top1, asr) in enumerate(points):
                    at = {"kind": "measure", "epoch": epoch, "step": epoch}
                    lines += [{**at, "images": "demo", "top1": top1, "asr": asr, **of}]
                    lines += [{**at, "images": "held", **{k: v[epoch] for k, v in more.items() if epoch in v}}]
                (folder / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                samples.end(folder / run)
    (folder / "study.json").write_text(json.dumps({"name": folder.name, "runs": runs}))
    return folder


MMCL = [[(0.80, 1.0), (0.78, 0.04), (0.70, 0.005), (0.79, 0.30)], [(0.80, 1.0), (0.76, 0.05)], [(0.80, 1.0), (0.77, 0.02)]]
SSL = [[(0.80, 0.9), (0.40, 0.01)], [(0.80, 0.9), (0.50, 0.03)], [(0.80, 0.9), (0.70, 0.60)]]


def test_a_verdict_over_seeds_by_hand(tmp_path: Path) -> None:
    first, second = judge(panels(read_study(journals(tmp_path / "s", {"mmcl": MMCL, "mmcl_ssl": SSL})))).verdicts
    # best at ASR <= 5 %: 0.78, 0.76, 0.77; of the other way 0.40, 0.50, none, whose lowest ASR is 0.6
    assert first.status == "cleaned"
    assert "from ASR 100.0 % to ASR ≤ 5 % in 3 of 3 seeds, at top-1 77.0 % [76.0, 78.0] (start 80.0 %)." in first.sentence
    assert second.status == "partly"
    assert "in 2 of 3 seeds, at top-1 45.0 % [40.0, 50.0] (start 80.0 %), a loss of 35.0 points" in second.sentence
    assert second.sentence.endswith("elsewhere the lowest ASR was 60.0 %.")


def test_scores_of_a_seed_by_hand(tmp_path: Path) -> None:
    judged = judge(panels(read_study(journals(tmp_path / "s", {"mmcl": MMCL, "mmcl_ssl": SSL}))))
    first = judged.scores[0]
    assert (first.group, first.seed) == (("MMCL", "CleanCLIP"), 0)
    values = {name: number.value for name, number in first.numbers.items()}
    assert values["best_top1_at_asr_0.01"] == 0.70
    assert values["best_top1_at_asr_0.05"] == 0.78
    assert values["drop_at_asr_0.05"] == pytest.approx(0.02)
    assert values["relative_drop_at_asr_0.05"] == pytest.approx(0.025)
    assert values["lowest_asr_at_0.9_of_start"] == 0.04
    assert values["lowest_asr_at_1_of_start"] is None
    assert values["hypervolume"] == pytest.approx(0.035 * 0.70 + 0.26 * 0.78 + 0.70 * 0.79)
    assert (values["points"], values["carrying_points"]) == (3, 1)
    assert first.numbers["best_top1_at_asr_0.05"].interval == pytest.approx((0.6894, 0.8499), abs=1e-3)  # 78 of 100


def test_means_count_the_seeds_without_a_point(tmp_path: Path) -> None:
    judged = judge(panels(read_study(journals(tmp_path / "s", {"mmcl": MMCL, "mmcl_ssl": SSL}))))
    good = judged.means["MMCL", "CleanCLIP"]["best_top1_at_asr_0.05"]
    assert (good.known, good.of, good.value) == (3, 3, pytest.approx(0.77))
    bad = judged.means["MMCL+SSL", "CleanCLIP"]["best_top1_at_asr_0.05"]
    assert (bad.known, bad.of, bad.value) == (2, 3, pytest.approx(0.45))
    (difference,) = judged.differences
    assert difference.value == pytest.approx(0.32)
    assert "3 of 3 and 2 of 3 seeds reach that ASR, and only those are compared" in difference.sentence


def points(*groups: list[float]) -> list[Panel]:
    """A panel for each list of accuracies, one seed each, all at ASR 0."""
    return [
        Panel(
            f"way {n}",
            [],
            [],
            [FrontierPoint(0.0, top1, PointInfo("r", 1, None, "c", None, seed)) for seed, top1 in enumerate(tops)],
            1,
            1,
        )
        for n, tops in enumerate(groups)
    ]


def test_three_seeds_never_claim_significance() -> None:
    (difference,) = judge(points([0.9, 0.8, 0.7], [0.1, 0.2, 0.3])).differences
    assert difference.test is not None
    assert difference.test.p == pytest.approx(0.1)
    assert "no p below 0.1 is possible" in difference.sentence
    (six,) = judge(points([0.9, 0.8, 0.7, 0.9, 0.8, 0.7], [0.1, 0.2, 0.3, 0.1, 0.2, 0.3])).differences
    assert "significant at 0.05" in six.sentence
    assert "not" not in six.sentence
    (single,) = judge(points([0.9], [0.1])).differences
    assert single.sentence.endswith(
        "+80.0 points; 1 of 1 and 1 of 1 seeds reach that ASR. With one seed each no test can tell that from chance."
    )
    (none,) = differences(judge(points([0.9], [0.1])).scores[:1] + judge([]).scores) or (None,)
    assert none is None


def test_rules_that_see_no_asr(tmp_path: Path) -> None:
    folder = journals(
        tmp_path / "s", {"mmcl": MMCL[:1]}, val_loss={1: 2.0, 2: 1.0, 3: 3.0}, proxy_asr={1: 0.3, 2: 0.2, 3: 0.1}
    )
    judged = judge(panels(read_study(folder)))
    numbers = {name: number.value for name, number in judged.scores[0].numbers.items()}
    assert (numbers["chosen_by_accuracy_top1"], numbers["chosen_by_accuracy_asr"]) == (0.79, 0.30)
    assert numbers["chosen_by_accuracy_gap"] == pytest.approx(-0.01)
    assert numbers["chosen_by_accuracy_excess"] == pytest.approx(0.25)
    assert numbers["chosen_by_val_loss_top1"] == 0.70
    assert numbers["chosen_by_val_loss_excess"] == 0
    assert numbers["chosen_by_proxy_asr"] == 0.30, "none is under 5 % by proxy, so the lowest"
    assert "chosen_by_distance_top1" not in numbers
    assert any("'distance' is left out for all cleanings" in note for note in judged.notes)
    part = judge(panels(read_study(journals(tmp_path / "part", {"mmcl": MMCL[:1]}, val_loss={1: 2.0, 2: 1.0}))))
    assert "chosen_by_val_loss_top1" not in part.scores[0].numbers, "it would choose among fewer points than the others"
    assert any("'val_loss' is left out for all cleanings: its number, val_loss, is not" in note for note in part.notes)


@pytest.mark.usefixtures("blank_figures")
def test_files_of_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = journals(tmp_path / "s", {"mmcl": MMCL, "a_b&[%": SSL})
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert "p = 0.1" in output or "no p below" in output
    judged = judge(panels(read_study(folder)))
    content = json.loads((folder / "report/verdict.json").read_text())
    assert content == json.loads(verdict_json(judged))
    assert content["groups"][1]["over_seeds"]["best_top1_at_asr_0.05"]["seeds_with"] == 2
    rows = list(csv.DictReader((folder / "report/verdict.csv").read_text().splitlines()))
    assert rows == list(csv.DictReader(verdict_csv(judged).splitlines()))
    (mean,) = (r for r in rows if (r["way"], r["seed"], r["number"]) == ("MMCL", "all", "best_top1_at_asr_0.05"))
    assert (float(mean["value"]), mean["interval"], mean["seeds_with"], mean["seeds"]) == (
        pytest.approx(0.77),
        "bootstrap",
        "3",
        "3",
    )
    tex = (folder / "report/verdict.tex").read_text()
    assert tex == verdict_tex(judged)
    assert r"a\_b\&{[}\%" in tex
    page = (folder / "report/index.html").read_text()
    assert "2 of 3 seeds" in page


def test_latex_escapes() -> None:
    assert escape("a_b\n& 5 % ~^\\ {$#") == r"a\_b \& 5 \% \textasciitilde{}\textasciicircum{}\textbackslash{} \{\$\#"


def test_without_counts_or_start_nothing_is_invented() -> None:
    judged = judge(points([0.9]))
    numbers = judged.scores[0].numbers
    assert numbers["best_top1_at_asr_0.05"].interval is None
    assert "drop_at_asr_0.05" not in numbers
    assert any("was not measured" in note for note in judged.notes)
    assert judged.means["way 0", "c"]["best_top1_at_asr_0.05"].interval is None, "one seed has no interval"


def test_absurd_journals_still_give_files() -> None:
    info = PointInfo("r", 1, None, "c", None, 0, {"pictures": 1e299, "others": -1.0})
    judged = judge([Panel("w", [], [], [FrontierPoint(1e299, 1e299, info), FrontierPoint(0.0, 0.5, info)], 1, 1)])
    assert judged.scores[0].numbers["hypervolume"].value == 0.5
    assert judged.scores[0].numbers["best_top1_at_asr_0.05"].interval is None
    assert json.loads(verdict_json(judged))["groups"][0]["way"] == "w"


def test_a_number_knows_its_label_unit_and_cap() -> None:
    means = judge(points([0.9, 0.8])).means["way 0", "c"]
    best = means["best_top1_at_asr_0.05"]
    assert (best.metric, best.metric.cap) == (BEST, 0.05)
    assert best.metric.label == "best top-1 at ASR ≤ 5 %"
    assert best.text == "85.0 % [80.0, 90.0]"
    assert means["points"].text == "1 [1, 1]"
    assert means["hypervolume"].text == "0.8500 [0.8000, 0.9000]"
    assert mean_of(drop(0.05), (0.02, None)).text == "-2.0"
    assert mean_of(relative_drop(0.05), (0.025,)).text == "-2.5 %"
    assert mean_of(drop(0.05), (-0.02, -0.04)).text == "+3.0 [+2.0, +4.0]", "a gain"
    assert mean_of(POINTS, (1, 2)).text == "1.5 [1.0, 2.0]"
    assert mean_of(chosen_by("proxy").gap, (-0.01,)).text == "-1.0"
    assert mean_of(BEST, (None,)).text == "none"


@pytest.mark.usefixtures("blank_figures")
def test_a_report_judges_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counter[str]()

    def counted(name: str) -> None:
        function = getattr(report.verdict, name)

        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(report.verdict, name, call)

    for name in ("panels", "scores", "over_seeds", "differences", "notes", "costs"):
        counted(name)
    folder = journals(tmp_path / "s", {"mmcl": MMCL, "mmcl_ssl": SSL})
    write_report(folder)
    assert counts == dict.fromkeys(counts, 1)
    assert len(counts) == 6


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_journals_number_that_is_not_finite_is_no_seed(odd: float) -> None:
    assert mean_of(BEST, (odd, 0.5, None, 0.7))[1:4] == (2, 4, pytest.approx(0.6))
    assert mean_of(BEST, (odd, None)).value is None
    members = [
        Score((way, "x"), seed, None, {BEST.name: Number(BEST, odd if seed == 1 else 0.5)})
        for way in "ab"
        for seed in (0, 1, 2)
    ]
    (one,) = differences(members)
    assert (one.value, one.test.p if one.test else None) == (0.0, 1.0)
