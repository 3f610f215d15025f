"""Differences between ways of pre-training: p, Holm's p, interval, what so many seeds could show, seeds that failed."""

from collections.abc import Sequence

import pytest

from report.differences import Difference, differences, rule_differences, rule_rows
from report.scores import BEST, Number, Score, chosen_by

Values = Sequence[float | None]


def scores(cleaner: str, *ways: Values, metrics: tuple[str, ...] = (BEST.name,)) -> list[Score]:
    known = {metric.name: metric for metric in (BEST, *chosen_by("accuracy")[:2])}
    return [
        Score((way, cleaner), seed, None, {name: Number(known[name], value) for name in metrics})
        for way, values in zip("ab", ways, strict=True)
        for seed, value in enumerate(values)
    ]


def only(*members: list[Score]) -> list[Difference]:
    return differences([score for some in members for score in some])


HIGH, LOW = [0.90, 0.91, 0.92, 0.93, 0.94], [0.70, 0.71, 0.72, 0.73, 0.74]


def test_p_is_adjusted_over_the_cleaners_of_the_study() -> None:
    """5 against 5: 2 of 252 divisions if the groups lie apart. Equal groups: p = 1. Of the two the smaller counts twice."""
    (alone,) = only(scores("x", HIGH, LOW))
    assert alone.compared is not None
    assert (alone.compared.test.p, alone.compared.adjusted) == (pytest.approx(2 / 252), pytest.approx(2 / 252))
    first, second = only(scores("x", HIGH, LOW), scores("y", HIGH, HIGH))
    assert first.compared is not None
    assert second.compared is not None
    assert first.compared.adjusted == pytest.approx(4 / 252)
    assert second.compared.adjusted == 1
    assert "p = 0.0079, by Holm over 2 cleaners 0.016, significant at 0.05" in first.sentence
    assert "p = 1, by Holm over 2 cleaners 1, not significant at 0.05" in second.sentence


def test_where_holm_leaves_no_p_small_enough_that_is_said() -> None:
    """4 against 4: 2/70 = 0.029 alone, but twice that of two; unless the other is significant and leaves its place."""
    (alone,) = only(scores("x", HIGH[:4], LOW[:4]))
    assert "p = 0.029, significant at 0.05." in alone.sentence
    pair = only(scores("x", HIGH[:4], LOW[:4]), scores("y", HIGH[:4], HIGH[:4]))
    assert [("with 4 and 4 seeds no p below 0.057 is possible" in one.sentence) for one in pair] == [True, True]
    pair = only(scores("x", HIGH[:4], LOW[:4]), scores("y", [*HIGH, *HIGH], [*LOW, *LOW]))
    assert "by Holm over 2 cleaners 0.029, significant at 0.05" in pair[0].sentence


def test_the_interval_is_the_tests_and_the_detectable_difference_the_seeds() -> None:
    (one,) = only(scores("x", HIGH, LOW))
    assert one.compared is not None
    # at most 12 of 252 divisions are refused; by a shift of 0.2 the groups are equal
    low, high = one.interval or (0, 0)
    assert 0.2 - low == pytest.approx(high - 0.2)
    assert low == pytest.approx(0.2 - 0.024, abs=0.003)
    # 2.02 standard deviations of 0.0158 by the noncentral t, 5 against 5
    assert one.compared.detectable == pytest.approx(2.02 * 0.0158, rel=0.06)
    assert f"So many seeds would show {100 * one.compared.detectable:.1f} points (power 80 %)." in one.sentence
    (few,) = only(scores("x", HIGH[:3], LOW[:3]))
    assert (few.interval, few.compared and few.compared.detectable) == (None, None)


def test_seeds_that_fail_are_counted_and_compared_as_0_too() -> None:
    """Of six 0.9 and two failures: both in one group in 15 + 15 of 70 divisions."""
    (one,) = only(scores("x", [0.9] * 4, [0.9, 0.9, None, None]))
    assert one.value == 0
    assert one.counted is not None
    assert (one.counted.value, one.counted.test.p) == (pytest.approx(0.45), pytest.approx(30 / 70))
    assert "4 of 4 and 2 of 4 seeds reach that ASR, and only those are compared. Permutation test: p = 1" in one.sentence
    assert "With the other seeds counted at 0 %: +45.0 points" in one.sentence
    assert "p = 0.43, not significant" in one.sentence
    (none,) = only(scores("x", [0.9] * 4, [None] * 4))
    assert (none.compared, none.counted and none.counted.value) == (None, 0.9)
    assert "no difference to state; 4 of 4 and 0 of 4 seeds reach that ASR. With the other seeds counted" in none.sentence
    (whole,) = only(scores("x", [0.9] * 4, [0.8] * 4))
    assert whole.counted is None


def test_a_cleaner_that_one_way_alone_is_cleaned_by_stays_in_holms_family_and_one_that_cleans_neither_is_none() -> None:
    """Which cleaners reach ASR <= 5 % is an outcome: one by which one way alone does is not dropped for it. One by which no
    seed of either does was never a comparison, however the seeds are divided."""
    none: Values = [None] * 5
    first, second, third = only(scores("x", HIGH, LOW), scores("y", HIGH, none), scores("z", none, none))
    assert first.compared is not None
    assert (first.compared.tests, first.compared.adjusted) == (2, pytest.approx(4 / 252))
    assert (second.compared, third.compared, third.counted) == (None, None, None)
    assert second.counted is not None
    assert second.counted.tests == 2, "seeds without a point counted as 0, of those two cleaners"
    assert third.sentence.endswith("no difference to state; 0 of 5 and 0 of 5 seeds reach that ASR.")


def test_rules_that_see_no_asr_are_compared_by_accuracy_and_asr() -> None:
    top1, asr, *_ = chosen_by("accuracy")
    members = scores("x", HIGH, LOW, metrics=(top1.name,))
    for at, score in enumerate(members):
        score.numbers[asr.name] = Number(asr, 0.5 if at < 5 else 0.25)
    found = rule_differences(members)
    assert [(one.metric.name, one.value) for one in found] == [(top1.name, pytest.approx(0.2)), (asr.name, 0.25)]
    (row,) = rule_rows(found)
    assert row[:3] == ["x", "a less b", "accuracy"]
    assert row[3].startswith("+20.0 points [+17.")
    assert row[4] == "+25.0 points [+25.0, +25.0], p = 0.0079"


def test_a_control_differs_from_none() -> None:
    members = [score._replace(control="fresh") for score in scores("scratch", HIGH, LOW)]
    assert differences(members) == []
    assert [one.cleaner for one in only(scores("x", HIGH, LOW), members)] == ["x"]
