"""What all drawings share: their look, their axes, colours for learning rates, and a figure as a file.

Every colour of a mark is at least 3 to 1 in contrast on white and on the page's dark paper, so that one drawing serves both:
as SVG its paper, ink and lines change with the reader's scheme (`DARK`).

Figures are built without pyplot, so nothing is global and no display is needed. matplotlib is imported
where it is used, because the command line must answer at once.
"""

import io
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from report.points import rate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

SHAPES = "os^vPXhp<>"  # by clean objective; the star and the diamond are taken
BAND, STAR, TWIN, INK = "#56B4E9", "#D55E00", "#8A5BD6", "#333333"
PAPER, LINE, EDGE = "#ffffff", "#e4e4e4", "#bbbbbb"
DARK = {INK: "#d8dde2", PAPER: "#1b1f23", LINE: "#353b42", EDGE: "#555d66"}  # what these are on a dark page
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A07800", "#7570B3", "#7F7F7F")  # after Okabe and Ito
RATES = ("#2F6FD0", "#8A5BD6", "#C9478F", "#D2562A", "#A27300", "#3F8A3A")  # from the lowest learning rate to the highest
MANY = 1_000  # points of one kind; more are a picture in a PDF or SVG, which else takes long to write and to open
WIDTH = 36  # letters of a panel's title in a line
TICKS = (0, 1, 5, 10, 20, 50, 100)  # of attack success, in percent


def style() -> AbstractContextManager[None]:
    """A context in which our figures are made; names are never read as formulas."""
    from matplotlib import rc_context

    return rc_context(
        {
            "font.size": 9.5,
            "axes.titlesize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": LINE,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.linewidth": 0.6,
            "savefig.dpi": 160,
            "text.parse_math": False,
            "pdf.fonttype": 42,
        }
    )


def grid(count: int, columns: int, x: str, y: str, height: float = 3.7) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` axes that share their scales, `columns` a row."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    width = {1: 4.4, 2: 4.5}.get(columns, 3.9)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=bool(y), squeeze=False)
    for spare in axes.flat[count:]:
        spare.remove()
    used = list(axes.flat[:count])
    for at, ax in enumerate(used):
        if at + columns >= count:
            ax.set_xlabel(x)
        if at + columns >= count or rows > 3:  # in a tall figure the last row is far away
            ax.tick_params(labelbottom=True)
        if y and at % columns == 0:
            ax.set_ylabel(y)
    return figure, used


def asr_axis(axes: "list[Axes]") -> None:
    """Makes the shared x axis one of attack success in percent, linear to 1 % and logarithmic beyond: most good points lie
    between 0 and 5 %, where they would hide each other."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes[0].set_xscale("symlog", linthresh=1, linscale=0.6)
    axes[0].set_xlim(-0.12, 125)
    for ax in axes:
        ax.xaxis.set_major_locator(FixedLocator(TICKS))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def palette(count: int) -> "ListedColormap":
    """That many colours for learning rates, from low to high."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    ramp = LinearSegmentedColormap.from_list("rates", RATES)
    return ListedColormap([ramp(at / max(count - 1, 1)) for at in range(max(count, 1))])


def paints_of(rates: list[float]) -> dict[float | None, Any]:
    """The colour of each rate, and of points without one."""
    colours = palette(len(rates))
    return {rate: colours(at) for at, rate in enumerate(rates)} | {None: "#7F7F7F"}


def rate_bar(figure: "Figure", axes: "list[Axes]", rates: list[float], narrow: bool) -> None:
    """Explains the colours of learning rates in a bar below the axes, as thick in a tall figure as in a low one; nothing
    without rates."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    if not rates:
        return
    count, high, wide = len(rates), figure.get_figheight(), figure.get_figwidth()
    share = min(0.9, 0.75 * count / wide)  # of the width
    norm = BoundaryNorm([at - 0.5 for at in range(count + 1)], count) if count > 1 else BoundaryNorm([-0.5, 0.5], 1)
    bar = figure.colorbar(
        ScalarMappable(norm, palette(count)),
        ax=axes,
        label="learning rate of the cleaning",
        location="bottom",
        shrink=share,
        aspect=share * wide / 0.16,
        fraction=0.16 / high,
        pad=0.12 / high,
    )
    every = -(-count // (6 if narrow else 14))  # a label needs room
    bar.set_ticks(list(range(0, count, every)), labels=[rate_text(r) for r in rates[::every]], minor=False)
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)


def render(figure: "Figure", kind: str, command: str) -> bytes:
    """The figure as a file's bytes, without a date, so that equal numbers give equal files; the command that draws it stands
    in the file's own facts (PDF: Subject, PNG: Description)."""
    out = io.BytesIO()
    metadata = {"CreationDate": None, "Subject": command} if kind == "pdf" else {"Software": None, "Description": command}
    figure.savefig(out, format=kind, metadata=metadata)
    figure.set_layout_engine("none")  # laid out once, for all kinds
    return out.getvalue()


def svg(figure: "Figure", dark: dict[str, str] = DARK) -> bytes:
    """The figure as SVG whose paper, ink and lines are those of the reader's scheme, light or dark."""
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "antidote"}):  # equal figures are equal files
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")
    text = out.getvalue().decode()
    for at, light in enumerate(dark):
        text = re.sub(f"{light}\\b", f"var(--c{at})", text, flags=re.IGNORECASE)
    schemes = [";".join(f"--c{at}:{colour}" for at, colour in enumerate(colours)) for colours in (dark, dark.values())]
    rule = f"<style>:root{{{schemes[0]}}}@media(prefers-color-scheme:dark){{:root{{{schemes[1]}}}}}</style>"
    return re.sub("(<svg[^>]*>)", lambda match: match[1] + rule, text, count=1).encode()


def titles(names: Iterable[str], width: int = WIDTH) -> list[str]:
    """The names in lines of so many letters, none cut; broken between words where that is possible."""
    return ["\n".join(_lines(name, width)) for name in names]


def _lines(name: str, width: int) -> list[str]:
    lines = [""]
    for part in re.findall(r"[^\s_/,;:·.-]*[\s_/,;:·.-]*", name):
        for piece in (part[at : at + width] for at in range(0, len(part), width)):
            if len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.strip() for line in lines if line.strip()]


def brief(text: str, most: int = 60) -> str:
    """The text, cut where it would not fit a drawing."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short(place: float | str) -> str:
    """The place as its tick says it; a name is not cut, lest two look alike."""
    if isinstance(place, str):
        return place
    return f"{place:,.0f}" if float(place).is_integer() and abs(place) < 1e7 else f"{place:g}"
