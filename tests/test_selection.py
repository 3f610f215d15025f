"""measures.selection: answers worked out by hand, and what holds for any candidates."""

import math

from hypothesis import given
from hypothesis import strategies as st

from measures.selection import Candidate, by_accuracy, by_distance, by_proxy, by_val_loss

RULES = (by_accuracy, by_val_loss, by_distance, by_proxy)
TABLE = [
    Candidate(0.80, 1.0, 0.1, 0.90, "untouched"),
    Candidate(0.77, 0.9, 5.0, 0.30, "moved"),
    Candidate(0.70, 1.5, 9.0, 0.04, "clean by proxy"),
    Candidate(0.60, 2.0, 9.5, 0.01, "cleaner"),
]
rates = st.sampled_from([0.0, 0.04, 0.05, 0.5, 1.0])
known = st.none() | rates
tables = st.lists(st.tuples(rates, known, known, known), max_size=12).map(
    lambda rows: [Candidate(*row, at) for at, row in enumerate(rows)]
)


def test_rules_by_hand() -> None:
    chosen = [rule(TABLE, 0.80) for rule in RULES]
    assert [one.label if one else None for one in chosen] == ["untouched", "moved", "moved", "clean by proxy"]
    worse = [one._replace(proxy_asr=one.proxy_asr + 0.1) for one in TABLE if one.proxy_asr is not None]
    lowest = by_proxy(worse)
    assert lowest is not None
    assert lowest.label == "cleaner", "none is under the cap, so the lowest"
    assert by_distance(TABLE, None) is None
    assert by_distance(TABLE, 0.99) is None


@given(tables, rates)
def test_a_rule_chooses_one_of_them_by_what_it_says(table: list[Candidate[int]], start: float) -> None:
    for rule in RULES:
        chosen = rule(table, start)
        assert chosen is None or chosen in table
    accurate, loss, far, proxy = (rule(table, start) for rule in RULES)
    assert (accurate is None) == (not table)
    assert accurate is None or accurate.top1 == max(one.top1 for one in table)
    losses = [one.val_loss for one in table if one.val_loss is not None]
    assert (loss.val_loss if loss else None) == min(losses, default=None)
    away = [one.distance for one in table if one.distance is not None and one.top1 >= 0.95 * start]
    assert (far.distance if far else None) == max(away, default=None)
    seen = [one.proxy_asr for one in table if one.proxy_asr is not None]
    if proxy is not None and proxy.proxy_asr is not None:
        assert proxy.proxy_asr <= 0.05 or proxy.proxy_asr == min(seen)
    assert (proxy is None) == (not seen)


@given(tables, rates, st.lists(st.integers(0, 12), max_size=3), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_not_known(table: list[Candidate[int]], start: float, places: list[int], odd: float) -> None:
    """Candidates all of whose numbers are damaged change no choice, wherever they stand; nor has such a start a choice."""
    mixed = list(table)
    for place in places:
        mixed.insert(place, Candidate(odd, odd, odd, odd, -1))
    for rule in RULES:
        assert rule(mixed, start) == rule(table, start)
    assert by_distance(table, odd) is None
