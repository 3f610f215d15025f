"""What a cleaning has reached so far, as points of the frontier."""

from collections.abc import Iterable
from math import inf

from measures.frontier import FrontierPoint
from records.rows import MeasureRow, Row


def measured_points(rows: Iterable[Row], until: float = inf) -> list[FrontierPoint[float]]:
    """The points that a cleaning's journal has measured up to an epoch, not its start, each labelled by its epoch."""
    return [
        FrontierPoint(row.asr, row.top1, row.epoch)
        for row in rows
        if isinstance(row, MeasureRow) and row.asr is not None and row.top1 is not None and 0 < row.epoch <= until
    ]
