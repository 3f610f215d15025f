"""The scores of training pairs: AUROC along the share of poison, their distribution by class, and ROC curves with what is
flagged marked."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from report.plots.rocs import Curve, roc_panels
from report.plots.style import INK, LINES, SHAPES, STAR, grid, style, titles
from report.suspects import AtShare, Scored, roc_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN = LINES[0]


def auroc_by_share(found: Mapping[str, Mapping[str, Mapping[float, AtShare]]], columns: int = 3) -> "Figure":
    """A panel for each attack: AUROC of each detector at each share of poison, a sign for each seed and a line through their
    means; then one for each whose twin was scored: the share of its pairs at the same thresholds."""
    shares = sorted({100 * share for lines in found.values() for line in lines.values() for share in line})
    panels = [
        (attack, "AUROC", {name: {share: at.auroc for share, at in line.items()} for name, line in lines.items()})
        for attack, lines in found.items()
    ]
    for attack, lines in found.items():
        flagged = {
            name: {share: [100 * one for one in at.of_twin] for share, at in line.items() if at.of_twin}
            for name, line in lines.items()
        }
        panels += [(f"{attack}, its twin", "flagged (%)", flagged)] if any(flagged.values()) else []
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    with style():
        figure, axes = grid(len(panels), columns, "poisoned pairs (%)", "", height=2.9)
        axes[0].set_xscale("log")
        axes[0].minorticks_off()
        for ax, (head, what, lines_of) in zip(axes, panels, strict=True):
            ax.set_title(titles([head])[0])
            ax.set_ylabel(what)
            _lines(ax, lines_of, names)
            ax.set_ylim(*((-0.03, 1.03) if what == "AUROC" else (0, None)))
            ax.set_xticks(shares, [f"{share:.3g}" for share in shares])
            ax.tick_params(labelbottom=True)
        for ax in axes[: len(found)]:
            ax.axhline(0.5, color=INK, linestyle=":", linewidth=0.8)
        handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=6 if columns > 1 else 3, frameon=False, fontsize=9
        )
    return figure


def _lines(ax: "Axes", found: Mapping[str, Mapping[float, list[float]]], names: list[str]) -> None:
    """A line for each detector through its means at each share, in percent, and a sign for each seed."""
    for name, line in found.items():
        at = names.index(name)
        look: dict[str, Any] = {"color": LINES[at % len(LINES)], "marker": SHAPES[at % len(SHAPES)]}
        shares = [100 * share for share in line]
        ax.plot(shares, list(map(fmean, line.values())), linewidth=1.3, markersize=3, label=name, **look)
        for share, numbers in zip(shares, line.values(), strict=True):
            ax.plot([share] * len(numbers), numbers, linestyle="", markersize=4, alpha=0.6, **look)


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
            edges = np.asarray(one.found.bins)
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
    curves = [Curve(one.found.title, one.way, roc_of(one.found), one.flagged_at) for one in found]
    return roc_panels(curves, ("clean pairs flagged (%)", "poisoned pairs found (%)"), {"flagged": ("", "o")}, columns)
