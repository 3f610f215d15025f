"""The order that scores put pairs in, as a text from which every number of a ranking can be computed anew.

    12 0/1 3/1 40        12 clean pairs, then a poisoned one, three clean ones and a poisoned one of one score, 40 clean ones

Each word is a group of equal scores, highest first: so many clean pairs, and behind each / so many of an attack's. Clean
pairs without a poisoned one among them are one group: nothing depends on how they lie to each other.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from measures.detectors.ranking import Ranked

MOST = 50_000  # groups; the order of more is not kept
ATTACKS = 100
WORDS = re.compile(rf"\d{{1,12}}(?:/\d{{1,12}}){{0,{ATTACKS}}}(?: \d{{1,12}}(?:/\d{{1,12}}){{0,{ATTACKS}}})*")


class Order(NamedTuple):
    """How many pairs are in each group: clean ones int64 [G], and of each attack int64 [G, A]."""

    clean: np.ndarray
    poisoned: np.ndarray

    def ranking(self, attack: int | None = None) -> Ranked:
        """That of all poisoned pairs, or of one attack's (the first is 0), among the clean ones; ValueError if there are
        none of either. Its thresholds are places."""
        hits = self.poisoned.sum(1) if attack is None else self.poisoned[:, attack]
        kept = (hits + self.clean) > 0
        ranking = Ranked(-np.arange(kept.sum(), dtype=float), np.cumsum(hits[kept]), np.cumsum(self.clean[kept]))
        if not kept.any() or not ranking.hits[-1] or not ranking.alarms[-1]:
            raise ValueError("a ranking needs poisoned and clean pairs")
        return ranking

    def caught(self, count: int) -> tuple[int, int]:
        """The least and the most poisoned pairs that can be among the first so many, whatever the order of ties."""
        hits = self.poisoned.sum(1)
        before = np.cumsum(hits + self.clean) - (hits + self.clean)
        at = max(0, int(np.searchsorted(before, count)) - 1)  # the group in which the count ends
        rest = min(count - int(before[at]), int(hits[at] + self.clean[at]))
        sure = int(hits[:at].sum())
        return sure + max(0, rest - int(self.clean[at])), sure + min(rest, int(hits[at]))


def order_of(scores: np.ndarray, owners: np.ndarray) -> str:
    """The text of finite scores (float64 [N]); `owners` int64 [N], which attack poisons each pair, -1: none. Empty where it
    has more than MOST groups."""
    order = np.argsort(-scores, kind="stable")
    new = np.append(True, np.diff(scores[order]) != 0)
    marks = owners[order]
    bad = np.bincount(np.cumsum(new) - 1, weights=marks >= 0)[np.cumsum(new) - 1] > 0  # whether one of its score is poisoned
    new[1:] &= bad[1:] | bad[:-1]
    groups, width = np.cumsum(new) - 1, int(owners.max(initial=-1)) + 2
    if groups[-1] >= MOST or width - 1 > ATTACKS:
        return ""
    counts = np.bincount(groups * width + marks + 1, minlength=(groups[-1] + 1) * width).reshape(-1, width)
    return " ".join("/".join(map(str, row if any(row[1:]) else row[:1])) for row in counts.tolist())


def read_order(text: str) -> Order:
    """The order in a text; ValueError if it is none."""
    if text.count(" ") >= MOST or not WORDS.fullmatch(text):
        raise ValueError("it is no order of pairs, or one of too many groups")
    rows = [[int(count) for count in word.split("/")] for word in text.split(" ")]
    width = max(map(len, rows))
    counts = np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
    if not counts.any(1).all():
        raise ValueError("it has an empty group")
    return Order(counts[:, 0], counts[:, 1:])
