"""Numbers of pre-training runs over their epochs."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from report.dynamics import Curve
from report.plots.style import LINES, MANY, PAPER, SHAPES, grid, style, titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(panels: Mapping[str, Sequence[Curve]], columns: int = 2, whole: Collection[str] = ()) -> "Figure":
    """Numbers of pre-training runs over their epochs, one panel each under its title; a twin is dashed and hollow. Those
    titled in `whole` are percentages shown from 0 to 100."""
    from matplotlib.ticker import MaxNLocator

    with style():
        figure, axes = grid(len(panels), columns, "pre-training epoch", "", height=3.1)
        ways = list(dict.fromkeys(curve.way for members in panels.values() for curve in members))
        for ax, (title, members) in zip(axes, panels.items(), strict=True):
            ax.set_title(title)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if title in whole:
                ax.set_ylim(-3, 103)
            for curve in members:
                at = ways.index(curve.way)
                ax.plot(
                    [epoch for epoch, _ in curve.line],
                    [number for _, number in curve.line],
                    color=LINES[at % len(LINES)],
                    linestyle="--" if curve.twin else "-",
                    marker=SHAPES[at % len(SHAPES)],
                    markersize=4.5,
                    rasterized=len(curve.line) > MANY,
                    markerfacecolor=PAPER if curve.twin else None,
                    label=titles([curve.label], 50)[0],
                )
        handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.set_figheight(figure.get_figheight() + 0.27 * -(-len(handles) // columns))  # a line of the legend
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)
    return figure
