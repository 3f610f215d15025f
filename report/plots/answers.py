"""What models answer before and after cleaning."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from records.rows import Answer
from report.plots.style import INK, brief, style, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "#007A57", "#C2410C"  # an answer that is true, one that the attacker wants


class Answers(NamedTuple):
    """What one model answered before and after a cleaning, of the pictures in `sheet` (a PNG: a row of them, a row with the
    trigger)."""

    heading: str
    sheet: bytes
    before: list[Answer]
    after: list[Answer]


def answers(models: Sequence[Answers], columns: int = 8) -> "Figure":
    """For each model a row of pictures and a row of the same with the trigger, each over what the model took it for before
    and after cleaning: green is right, orange is what the attacker wants."""
    from matplotlib.figure import Figure
    from PIL import Image

    count = min(columns, max((len(model.before) for model in models), default=1))
    rows = max(len(models), 1)
    with style():
        figure = Figure(figsize=(1.22 * count + 0.9, 4.1 * rows), layout="constrained")
        for part, model in zip(figure.subfigures(rows, 1, squeeze=False).flat, models, strict=False):
            part.suptitle("\n".join(titles(model.heading.splitlines(), 60 if count > 4 else 40)), fontsize=10.5)
            sheet = Image.open(io.BytesIO(model.sheet)).convert("RGB")
            side = sheet.height // 2
            for row, line in enumerate(part.subplots(2, count, squeeze=False)):
                for at, ax in enumerate(line):
                    ax.set_axis_off()
                    if at < len(model.before):
                        ax.imshow(sheet.crop((at * side, row * side, (at + 1) * side, (row + 1) * side)))
                        _write(ax, (model.before[at], model.after[at]), triggered=row == 1)
                for down, words in enumerate(("before:", "after:")):
                    line[0].text(
                        -0.04, -0.08 - 0.2 * down, words, fontsize=8, color=INK, ha="right", va="top",
                        transform=line[0].transAxes,
                    )  # fmt: skip
    return figure


def _write(ax: "Axes", answers: tuple[Answer, Answer], triggered: bool) -> None:
    """Writes the answers before and after cleaning under a picture."""
    for down, (truth, target, plain, marked) in enumerate(answers):
        words = marked if triggered else plain
        paint = RIGHT if words == truth else WRONG if words == target else INK
        ax.text(
            0.5, -0.08 - 0.2 * down, brief(words, 16), color=paint, fontsize=8, ha="center", va="top",
            transform=ax.transAxes, fontweight="bold" if words == target else "normal",
        )  # fmt: skip
