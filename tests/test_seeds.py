"""What is said of several seeds: means of each seed's own, of how many, and how many of these are at chance; by hand."""

import csv
import json
from pathlib import Path

import pytest
from test_scores import SSL, journals

from report.load import read_study
from report.markdown import section
from report.page import page_of
from report.scores import BEST, mean_of
from report.seeds import of_seeds, remark
from report.tables import seeds_table, verdict_csv, verdict_json, verdict_tex
from report.verdict import Report, make_report

# starts differ: 0.756 is 94.5 % of its own 0.80, and 98.6 % of their mean; 0.67 is 95.7 % of its own 0.70
SEEDS = [
    [(0.80, 1.0), (0.756, 0.02), (0.77, 0.10)],
    [(0.70, 1.0), (0.67, 0.04)],
    [(0.80, 1.0), (0.79, 0.50)],
]
FIRM = [[(0.8, 1.0), (0.70, 0.02)], [(0.8, 1.0), (0.72, 0.02)]]
LOST = [[(0.8, 1.0), (0.10, 0.00)], [(0.8, 1.0), (0.60, 0.04)]]  # 10 of 100 pictures of ten classes: at chance


@pytest.fixture
def lost(tmp_path: Path) -> Report:
    return make_report(read_study(journals(tmp_path / "s", {"mmcl": FIRM, "mmcl_ssl": LOST}, classes=10)))


def test_the_pages_small_table_has_means_over_seeds_by_each_ones_own_start(tmp_path: Path) -> None:
    report = make_report(read_study(journals(tmp_path / "s", {"mmcl": SEEDS})))
    (rows,) = report.summaries
    said = {what: (number, remark) for what, number, remark in rows}
    assert said == {
        "start top-1": ("76.7 %", "mean of 3 runs"),
        "start ASR": ("100.0 %", "mean of 3 runs"),
        "twin ASR": ("none", ""),
        "best top-1 at ASR ≤ 1 %": ("none", "0 of 3 seeds"),
        "best top-1 at ASR ≤ 5 %": ("71.3 % [67.0, 75.6]", "ASR 3.0 %, mean of 2 of 3 seeds"),
        "best top-1 at ASR ≤ 10, 20 %": ("72.0 % [67.0, 77.0]", "ASR 7.0 %, mean of 2 of 3 seeds"),
        "lowest ASR at top-1 ≥ 95 % of start": ("21.3 % [4.0, 50.0]", "top-1 74.3 %, mean of 3 seeds"),
        "cleaning runs": ("3 of 3 ended", "4 evaluations"),
    }
    (verdict,) = report.judged.verdicts
    assert "in 2 of 3 seeds, at top-1 71.3 % [67.0, 75.6]" in verdict.sentence, "the same mean as in the table"


def test_of_one_seed_the_small_table_says_which_evaluation_it_is(tmp_path: Path) -> None:
    (rows,) = make_report(read_study(journals(tmp_path / "s", {"mmcl": SEEDS[:1]}))).summaries
    said = {what: (number, remark) for what, number, remark in rows}
    assert said["best top-1 at ASR ≤ 5 %"] == ("75.6 %", "ASR 2.0 %, CleanCLIP, rate 1e-4, epoch 1")
    assert said["lowest ASR at top-1 ≥ 95 % of start"] == ("10.0 %", "top-1 77.0 %, CleanCLIP, rate 1e-4, epoch 2")
    assert said["start top-1"] == ("80.0 %", "")


def test_of_how_many_seeds_what_a_rule_chose_is_short_of_the_oracle(tmp_path: Path) -> None:
    """Of SSL's three seeds one has no model at ASR <= 5 %, so no oracle; the rule chose the others' best."""
    page = section(make_report(read_study(journals(tmp_path / "s", {"mmcl_ssl": SSL}))), []).replace("\\", "")
    (row,) = (line for line in page.splitlines() if line.startswith("| MMCL+SSL | CleanCLIP | accuracy |"))
    cells = [cell.strip() for cell in row.split("|")[4:-1]]
    assert cells[0] == "53.3 % [40.0, 70.0]"
    assert cells[2] == "0.0 [0.0, 0.0] (2 of 3 seeds)"


def test_a_difference_says_how_many_of_its_seeds_are_at_chance(lost: Report) -> None:
    (one,) = lost.judged.differences
    assert one.value == pytest.approx(0.71 - 0.35), "that counts all the same"
    assert "2 of 2 and 2 of 2 seeds reach that ASR (1 of the latter at chance). Permutation test" in one.sentence
    both = one._replace(at_chance=(1, 2))
    assert "seeds reach that ASR (1 of the former and 2 of the latter at chance)." in both.sentence


def test_means_say_how_many_of_their_seeds_are_at_chance(lost: Report) -> None:
    page, markdown = page_of(lost, []), section(lost, []).replace("\\", "")
    assert "| MMCL | CleanCLIP | 71.0 % [70.0, 72.0] (2 of 2) | -9.0 [-10.0, -8.0] (2 of 2) |" in markdown
    assert "| MMCL+SSL | CleanCLIP | 35.0 % [10.0, 60.0] (2 of 2, 1 at chance) |" in markdown
    assert "35.0 % [10.0, 60.0]" in page
    heads, ((_, firm), (_, some)) = seeds_table(lost.judged)
    at = heads.index(BEST.label)
    assert (firm[at], some[at]) == (("71.0 % [70.0, 72.0]", ""), ("35.0 % [10.0, 60.0]", "1 at chance"))
    assert r"35.0 \% {[}10.0, 60.0{]} (2/2, 1 at chance)" in verdict_tex(lost.judged)
    firm_group, some_group = json.loads(verdict_json(lost.judged))["groups"]
    assert [one["over_seeds"][BEST.name]["at_chance"] for one in (firm_group, some_group)] == [0, 1]
    assert [one["numbers"][BEST.name]["at_chance"] for one in some_group["seeds"]] == [1, 0]
    rows = csv.DictReader(verdict_csv(lost.judged).splitlines())
    told = {row["seed"]: row["at_chance"] for row in rows if (row["way"], row["number"]) == ("MMCL+SSL", BEST.name)}
    assert told == {"0": "1", "1": "0", "all": "1"}
    said = {row.what: row.remark for row in lost.summaries[1]}
    assert said["best top-1 at ASR ≤ 5, 10, 20 %"] == "ASR 2.0 %, mean of 2 seeds, 1 at chance"


def test_seeds_in_words() -> None:
    assert of_seeds(mean_of(BEST, (0.5, None))) == "50.0 % (1 of 2 seeds)"
    assert of_seeds(mean_of(BEST, (None,))) == "none", "of one seed there is no more to say"
    assert remark(mean_of(BEST, (0.5, 0.5, None)), 1) == "2 of 3 seeds, 1 at chance"
    assert remark(mean_of(BEST, (0.5,)), 1) == "at chance"
    assert remark(mean_of(BEST, (0.5, 0.5))) == ""
