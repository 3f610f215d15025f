"""What verdicts and figures are made of: plain values, without a drawing or a file among them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from measures.frontier import FrontierPoint


class Mark(NamedTuple):
    """What a cleaned point is: its run, epoch, rate and objective, the model it started from, its seed, what else was
    measured there (of how many pictures its rates are, what a defender could know), and its cleaning's swept settings."""

    run: str
    epoch: float
    rate: float | None
    objective: str
    start: FrontierPoint[str] | None
    seed: int | None = None
    facts: Mapping[str, float] = {}
    swept: Mapping[str, Any] = {}


class Panel(NamedTuple):
    """All that was measured for one way of pre-training; `finished` of its `total` runs are done. The drawing is headed by
    `heading`, or by the title if there is none."""

    title: str
    starts: list[FrontierPoint[str]]
    twins: list[FrontierPoint[str]]
    points: list[FrontierPoint[Mark]]
    finished: int
    total: int
    heading: str | None = None


class Answers(NamedTuple):
    """What one model answered before and after a cleaning, of the pictures in `sheet` (a PNG: a row of them, a row with the
    trigger). An answer is (true class, target, answer, answer with the trigger)."""

    heading: str
    sheet: bytes
    before: list[tuple[str, str, str, str]]
    after: list[tuple[str, str, str, str]]


class Course(NamedTuple):
    """One number of a pre-training run over its epochs; one way has one colour."""

    way: str
    label: str
    twin: bool
    line: list[tuple[float, float]]


def percent(rate: float) -> str:
    """The rate as text: 0.021 is '2.1 %'."""
    return f"{100 * rate:.1f} %"


def rate_text(rate: float | None) -> str:
    """The learning rate as people write it: 0.00003 is '3e-5', 0.05 stays."""
    if rate is None or rate == 0 or abs(rate) >= 0.01:
        return "" if rate is None else f"{rate:g}"
    digits, power = f"{rate:.4e}".split("e")
    return f"{float(digits):g}e{int(power)}"
