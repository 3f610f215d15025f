"""The scores of training pairs: their distribution by class, and ROC curves with what is flagged marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from report.plots.style import INK, LINES, PAPER, STAR, grid, style, titles
from report.suspects import Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = LINES[0]


def distributions(found: Sequence[Scored], columns: int = 2) -> "Figure":
    """A panel for each detector and way of pre-training: the share of clean and of poisoned pairs at each score; the dashed
    line is the threshold of the budget."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with style():
        columns = min(columns, len(found))
        rows = -(-len(found) // columns)
        figure = Figure(figsize=(4.5 * columns, 2.5 * rows + 0.5), layout="constrained")
        every = list(figure.subplots(rows, columns, squeeze=False).flat)  # each with its own scale of scores
        for spare in every[len(found) :]:
            spare.remove()
        axes, several = every[: len(found)], len({one.way for one in found}) > 1
        heads = titles([f"{one.found.title}: {one.way}" if several else one.found.title for one in found])
        for ax, one, head in zip(axes, found, heads, strict=True):
            ax.set_title(head)
            edges = np.asarray(one.found.edges)
            for counts, colour in ((one.found.clean, CLEAN), (one.found.poisoned, STAR)):
                if sum(counts):
                    ax.stairs(100 * np.asarray(counts) / sum(counts), edges, color=colour, fill=True, alpha=0.35)
                    ax.stairs(100 * np.asarray(counts) / sum(counts), edges, color=colour)
            ax.axvline(one.found.threshold, color=INK, linestyle="--", linewidth=1)
            ax.set_xlabel("score")
            ax.set_ylabel("pairs of the class (%)")
        handles = [Line2D([], [], color=CLEAN, label="clean"), Line2D([], [], color=STAR, label="poisoned")]
        handles.append(Line2D([], [], color=INK, linestyle="--", label="flagged beyond"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def pair_rocs(found: Sequence[Scored], columns: int = 2) -> "Figure":
    """A panel for each detector: the share of poisoned pairs found against that of clean ones flagged, in percent, a curve
    for each seed; a sign is what the budget flags."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator

    detectors, ways = (
        list(dict.fromkeys(names)) for names in zip(*((one.found.title, one.way) for one in found), strict=True)
    )
    with style():
        figure, axes = grid(len(detectors), columns, "clean pairs flagged (%)", "poisoned pairs found (%)", 3.3)
        axes[0].set_xscale("symlog", linthresh=0.1, linscale=0.3)
        axes[0].set_xlim(-0.01, 110)
        for ax, detector in zip(axes, detectors, strict=True):
            ax.set_title(detector)
            ax.xaxis.set_major_locator(FixedLocator((0, 0.1, 1, 5, 20, 100)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.set_ylim(-3, 103)
            for one in (one for one in found if one.found.title == detector):
                colour = LINES[ways.index(one.way) % len(LINES)]
                ax.plot(*(100 * np.asarray(one.found.curve)).T, color=colour, linewidth=1.2)
                if (at := one.flagged_at) is not None:
                    ax.plot(100 * at[0], 100 * at[1], "o", color=colour, markerfacecolor=PAPER, clip_on=False, zorder=4)
        handles = [Line2D([], [], color=INK, marker="o", linestyle="", markerfacecolor=PAPER, label="flagged")]
        if len(ways) > 1:
            names = titles(ways, 40)
            handles += [Line2D([], [], color=LINES[at % len(LINES)], label=name) for at, name in enumerate(names)]
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure
