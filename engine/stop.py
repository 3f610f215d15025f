"""The median rule (Golovin et al. 2017, section 3.2), for points of two rates: whether a run is worth going on with."""

from pathlib import Path
from statistics import median

from configs.sweep import Median
from engine.journal import read_rows
from measures.frontier import Point, worth


def hopeless(rule: Median, folder: Path, rivals: list[Path], epoch: float) -> str | None:
    """Why the run in a folder should end after this epoch; None if it should go on."""
    if epoch < rule.after:
        return None
    others = [worth(points_until(one, epoch), rule.cap) for one in rivals if _has_come(one, epoch)]
    mine = worth(points_until(folder, epoch), rule.cap)
    if mine is None or len(others) < rule.runs or mine >= (middle := median(one for one in others if one is not None)):
        return None
    return f"after epoch {epoch:g} its best of {mine:.4f} was below {middle:.4f}, the median of {len(others)} others'"


def points_until(folder: Path, epoch: float) -> list[Point[float]]:
    """What a cleaning run has measured up to an epoch, on the images that have both rates; not its start."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "measure"]
    return [
        Point(row["asr"], row["top1"], row["epoch"])
        for row in rows
        if "asr" in row and "top1" in row and 0 < row["epoch"] <= epoch
    ]


def _has_come(folder: Path, epoch: float) -> bool:
    return any(row["kind"] == "measure" and row["epoch"] >= epoch for row in read_rows(folder / "metrics.jsonl"))
