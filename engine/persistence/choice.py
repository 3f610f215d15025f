"""Which cleaned model is probed: of each start and cleaner one of those that cleanings end with, by a rule."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from configs.after import After
from configs.plan import Run
from measures.frontier import FrontierPoint, best_accuracy
from measures.selection import Candidate, Rule, by_accuracy, by_distance, by_proxy, by_val_loss
from records.ending import run_rows
from records.folder import finished
from records.rows import MeasureRow

Group = tuple[str | None, str | None]  # what cleanings start from, the cleaner
RULES: dict[str, Rule[Run]] = {
    "accuracy": by_accuracy,
    "val_loss": by_val_loss,
    "distance": by_distance,
    "proxy": by_proxy,
}


class End(NamedTuple):
    """What a cleaning's last evaluation says, and the accuracy of its first, before any step."""

    top1: float
    asr: float
    others: dict[str, float]
    begun: float | None


def groups(runs: Iterable[Run]) -> dict[Group, list[Run]]:
    """The cleanings of poisoned models, those together that start from the same one by the same cleaner; no controls."""
    out: dict[Group, list[Run]] = {}
    for run in runs:
        if run.stage == "clean" and run.after is None and run.control is None:
            out.setdefault((run.origin, run.cleaner), []).append(run)
    return out


def chosen(members: Iterable[Run], study: Path, section: After) -> Run | None:
    """The cleaning that the rule chooses by the models that they end with, whose weights are there; None if none qualifies.
    A run that was ended early keeps no weights, and is none of them."""
    ends = [(run, end) for run in members if finished(study / run.folder) and (end := _end(study / run.folder)) is not None]
    if section.choose == "oracle":
        best = best_accuracy([FrontierPoint(end.asr, end.top1, run) for run, end in ends], section.cap)
        return best.label if best is not None else None
    candidates = [
        Candidate(end.top1, end.others.get("val_loss"), end.others.get("distance"), end.others.get("proxy_asr"), run)
        for run, end in ends
    ]
    begun = [end.begun for _, end in ends if end.begun is not None]
    found = RULES[section.choose](candidates, max(begun, default=None))
    return found.label if found is not None else None


def _end(folder: Path) -> End | None:
    """The numbers at the end of a cleaning; None where no set has both rates."""
    rows = [row for row in run_rows(folder) if isinstance(row, MeasureRow)]
    last = max((row.step for row in rows), default=0)
    both = [row for row in rows if row.step == last and row.top1 is not None and row.asr is not None]
    if not both or both[-1].top1 is None or both[-1].asr is None:
        return None
    others = {name: value for row in rows if row.step == last for name, value in row.numbers().items()}
    first = both[0].images
    begun = next((row.top1 for row in rows if row.step == 0 and row.images == first), None)
    end = next(row for row in reversed(both) if row.images == first)  # of one measured again the later row counts
    assert end.top1 is not None
    assert end.asr is not None
    return End(end.top1, end.asr, others, begun)
