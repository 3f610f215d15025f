"""The median rule (Golovin et al. 2017, section 3.2), for points of two rates: whether a run is worth going on with."""

from pathlib import Path
from statistics import median

from configs.sweep import Median
from engine.study.points import measured_points
from measures.frontier import worth
from records.rows import FILE, MeasureRow, read_rows


def hopeless(rule: Median, folder: Path, rivals: list[Path], epoch: float) -> str | None:
    """Why the run in a folder should end after this epoch; None if it should go on."""
    if epoch < rule.after:
        return None
    journals = [read_rows(one / FILE) for one in rivals]
    come = [rows for rows in journals if any(isinstance(row, MeasureRow) and row.epoch >= epoch for row in rows)]
    others = [worth(measured_points(rows, epoch), rule.cap) for rows in come]
    mine = worth(measured_points(read_rows(folder / FILE), epoch), rule.cap)
    if mine is None or len(others) < rule.runs or mine >= (middle := median(one for one in others if one is not None)):
        return None
    return f"after epoch {epoch:g} its best of {mine:.4f} was below {middle:.4f}, the median of {len(others)} others'"
