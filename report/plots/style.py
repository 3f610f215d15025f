"""What all drawings share: their look, their axes, colours for learning rates, and a figure as a file.

Figures are built without pyplot, so nothing is global and no display is needed. matplotlib is imported
where it is used, because the command line must answer at once.
"""

import io
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from report.points import rate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

SHAPES = "os^vPXhp<>"  # by clean objective; the star and the diamond are taken
BAND, STAR, TWIN, INK = "#56B4E9", "#D55E00", "#7A3E9D", "#333333"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito


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
            "grid.color": "#E4E4E4",
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
            ax.tick_params(labelbottom=True)
        if y and at % columns == 0:
            ax.set_ylabel(y)
    return figure, used


def palette(rates: list[float]) -> "tuple[ListedColormap, BoundaryNorm]":
    """One colour for each rate, dark to light, without viridis' palest tenth (lost on paper)."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    count = max(len(rates), 1)
    shades = [colormaps["viridis"](0.92 * at / max(count - 1, 1)) for at in range(count)]
    return ListedColormap(shades), BoundaryNorm([at - 0.5 for at in range(count + 1)], count)


def paints_of(rates: list[float]) -> dict[float | None, Any]:
    """The colour of each rate, and of points without one."""
    colours, _ = palette(rates)
    return {rate: colours(at) for at, rate in enumerate(rates)} | {None: "#888888"}


def rate_bar(figure: "Figure", axes: "list[Axes]", rates: list[float], narrow: bool) -> None:
    """Explains the colours of learning rates beside the axes, or below them where it is narrow; nothing without rates."""
    from matplotlib.cm import ScalarMappable

    if not rates:
        return
    colours, norm = palette(rates)
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=axes,
        label="learning rate of the cleaning",
        location="bottom" if narrow else "right",
        fraction=0.05,
        pad=0.02,
    )
    every = -(-len(rates) // (6 if narrow else 14))  # a label needs room
    bar.set_ticks(list(range(0, len(rates), every)), labels=[rate_text(r) for r in rates[::every]], minor=False)
    bar.ax.tick_params(which="both", length=0)


def render(figure: "Figure", kind: str, command: str) -> bytes:
    """The figure as a file's bytes, without a date, so that equal numbers give equal files; the command that draws it stands
    in the file's own facts (PDF: Subject, PNG: Description)."""
    out = io.BytesIO()
    metadata = {"CreationDate": None, "Subject": command} if kind == "pdf" else {"Software": None, "Description": command}
    figure.savefig(out, format=kind, metadata=metadata)
    figure.set_layout_engine("none")  # laid out once, for all kinds
    return out.getvalue()


def brief(text: str, most: int = 60) -> str:
    """The text, cut where it would not fit a drawing."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short(place: float | str) -> str:
    """The place as its tick says it."""
    if isinstance(place, str):
        return place if len(place) <= 18 else f"{place[:17]}…"
    return f"{place:,.0f}" if float(place).is_integer() and abs(place) < 1e7 else f"{place:g}"
