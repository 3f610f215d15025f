"""The scores of training pairs: their distribution by class, and ROC curves with what is flagged marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from report.plots.rocs import Curve, roc_panels
from report.plots.style import INK, LINES, STAR, style, titles
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
    curves = [Curve(one.found.title, one.way, one.found.curve, one.flagged_at) for one in found]
    return roc_panels(curves, ("clean pairs flagged (%)", "poisoned pairs found (%)"), {"flagged": ("", "o")}, columns)
