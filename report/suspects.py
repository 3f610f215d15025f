"""The scores of training pairs: how well each detector tells the poisoned ones, and what it flags of the untouched twin's.

The numbers are those of detect/detection.json in the runs' folders, means over the pre-trainings of one kind.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from measures.detectors.order import read_order
from measures.detectors.ranking import curve
from records.detection import DetectorResult
from report.load import Record, Study
from report.points import percent, title, way_of

HEADS = (
    *("detector", "AUROC", "average precision", "FPR at 95 % TPR", "precision at 1 %", "recall at 1 %"),
    *("flagged", "poisoned among them", "of the twin's, same threshold", "of the twin's, same rule"),
)
POISON = ("poison.fraction", "poison.count")  # settings that say how many pairs are poisoned
FACTS = ["run", "detector", "kind", "attack", "pairs", "poisoned", "scored", "flagged", "poisoned_flagged", "threshold"]


@dataclass(frozen=True)
class Scored:
    """One detector's scores of one pre-training's pairs; `way` is what all seeds of it share."""

    way: str
    record: Record
    poisoned: int  # of all pairs
    found: DetectorResult
    pairs: int
    attack: str  # the way without the settings that say how many pairs are poisoned

    @property
    def flagged_at(self) -> tuple[float, float] | None:
        """(FPR, TPR) of what is flagged; None where nothing is poisoned."""
        found = self.found
        if found.poisoned_flagged is None:
            return None
        bad, good = sum(found.poisoned), sum(found.clean)
        return (found.flagged - found.poisoned_flagged) / max(1, good), found.poisoned_flagged / max(1, bad)


def roc_of(found: DetectorResult) -> list[tuple[float, float]]:
    """(FPR, TPR) along its scores: of the order that they put pairs in, or as recorded where that is not kept; empty of a
    pre-training without poison."""
    try:
        return curve(read_order(found.order).ranking()) if found.order else found.curve
    except ValueError:  # a folder is shown as it is; a packed study with such an order is refused
        return found.curve


def scored(study: Study) -> list[Scored]:
    """Of each poisoned pre-training whose pairs were scored, each detector."""
    out = []
    for record in study.records:
        if record.detection is None or record.run.stage != "pretrain":
            continue
        way, found = way_of(record.run), record.detection
        attack = title((way[0], tuple(setting for setting in way[1] if setting[0] not in POISON)))
        out += [Scored(title(way), record, found.poisoned, one, found.pairs, attack) for one in found.detectors]
    return out


class AtShare(NamedTuple):
    """What a detector found where a share of the pairs was poisoned, one number for each seed: AUROCs, and the shares of the
    twin's pairs at or above the threshold that the budget gave."""

    auroc: list[float]
    of_twin: list[float]


def along_shares(found: Iterable[Scored]) -> dict[str, dict[str, dict[float, AtShare]]]:
    """By attack, detector and the share of the pairs that were poisoned, of attacks that were swept over several shares."""
    out: dict[str, dict[str, dict[float, AtShare]]] = {}
    for one in found:
        if "auroc" in one.found.numbers and one.attack != one.way:
            line = out.setdefault(one.attack, {}).setdefault(one.found.title, {})
            at = line.setdefault(one.poisoned / one.pairs, AtShare([], []))
            at.auroc.append(one.found.numbers["auroc"])
            at.of_twin.extend([one.found.twin["threshold"]] if "threshold" in one.found.twin else [])
    return {
        attack: {name: dict(sorted(line.items())) for name, line in lines.items()}
        for attack, lines in out.items()
        if len({share for line in lines.values() for share in line}) > 1
    }


def scored_rows(found: Iterable[Scored]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For a table: of each way of pre-training and detector the way, and under HEADS a cell with a remark."""
    groups: dict[tuple[str, str], list[DetectorResult]] = {}
    for one in found:
        groups.setdefault((one.way, one.found.title), []).append(one.found)
    return [(way, _cells(title, members)) for (way, title), members in groups.items()]


def _cells(title: str, members: list[DetectorResult]) -> list[tuple[str, str]]:
    """Means over the members, and of how many of them where some have no such number: of what a budget has not flagged there
    is no share, and a member may have no twin."""

    def mean(values: list[float | None], words: Callable[[float], str] = percent) -> tuple[str, str]:
        known = [value for value in values if value is not None]
        some = f"{len(known)} of {len(values)}" if 0 < len(known) < len(values) else ""
        return (words(fmean(known)) if known else "", some)

    scores = [mean([one.numbers.get(name) for one in members], "{:.3f}".format) for name in ("auroc", "average_precision")]
    rates = [mean([one.numbers.get(name) for one in members]) for name in ("fpr95", "precision_0.01", "recall_0.01")]
    flagged = mean([one.flagged / max(1, one.scored) for one in members])
    right = mean(
        [one.poisoned_flagged / one.flagged if one.poisoned_flagged is not None and one.flagged else None for one in members]
    )
    of_twin = [mean([one.twin.get(name) for one in members]) for name in ("threshold", "rule")]
    many = f"mean of {len(members)}" if len(members) > 1 else ""
    return [(title, many), *scores, *rates, flagged, right, *of_twin]


def scored_table(found: Iterable[Scored]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of detection.csv: each run, detector and attack."""
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for one in found:
        result = one.found
        facts = {"run": one.record.run.run, "detector": result.title, "kind": result.kind, "poisoned": one.poisoned}
        facts["pairs"] = one.pairs
        facts |= {name: getattr(result, name) for name in ("scored", "flagged", "poisoned_flagged", "threshold")}
        whole = result.numbers | result.notes | {f"twin_{name}": share for name, share in result.twin.items()}
        for attack, numbers in {"": whole, **result.attacks}.items():
            rows.append(facts | {"attack": attack} | numbers)
            names |= dict.fromkeys(numbers)
    return [*FACTS, *names], rows
