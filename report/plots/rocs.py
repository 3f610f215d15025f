"""ROC curves: a panel for each detector, a colour for each way of pre-training, a sign where the detector's rule stands."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from report.plots.style import INK, LINES, PAPER, grid, style, titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stroke = Literal["-", ":", "--", ""]
TICKS = (0, 0.1, 1, 5, 20, 100)  # of the clean ones, in percent


class Curve(NamedTuple):
    """One curve; points and the rule's place are (FPR, TPR) in [0, 1]. `points` may be empty, and `at` unknown."""

    detector: str
    way: str
    points: Sequence[tuple[float, float]]
    at: tuple[float, float] | None
    stroke: Stroke = "-"
    sign: str = "o"


def roc_panels(
    curves: Sequence[Curve], labels: tuple[str, str], kinds: dict[str, tuple[Stroke, str]], columns: int
) -> "Figure":
    """The share of poisoned found against that of clean ones flagged, in percent, under the axes' `labels`; `kinds` are the
    stroke and the sign of each name that the legend explains."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator

    detectors, ways = (
        list(dict.fromkeys(names)) for names in zip(*((one.detector, one.way) for one in curves), strict=True)
    )
    with style():
        figure, axes = grid(len(detectors), columns, *labels, 3.3)
        axes[0].set_xscale("symlog", linthresh=0.1, linscale=0.3)
        axes[0].set_xlim(-0.01, 110)
        for ax, detector in zip(axes, detectors, strict=True):
            ax.set_title(detector)
            ax.xaxis.set_major_locator(FixedLocator(TICKS))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.set_ylim(-3, 103)
        for one in curves:
            ax, colour = axes[detectors.index(one.detector)], LINES[ways.index(one.way) % len(LINES)]
            x, y = ([100 * point[axis] for point in one.points] for axis in (0, 1))
            ax.plot(x, y, color=colour, linestyle=one.stroke, linewidth=1.2)
            if one.at is not None:
                x, y = ([100 * rate] for rate in one.at)
                ax.plot(x, y, one.sign, color=colour, markerfacecolor=PAPER, markersize=8, clip_on=False, zorder=4)
        handles = [
            Line2D([], [], color=INK, linestyle=stroke, marker=sign, markerfacecolor=PAPER, label=kind)
            for kind, (stroke, sign) in kinds.items()
        ]
        if len(ways) > 1:
            names = titles(ways, 40)
            handles += [Line2D([], [], color=LINES[at % len(LINES)], label=name) for at, name in enumerate(names)]
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure
