"""The scores of training pairs: AUROC along the share of poison, their distribution by class, and ROC curves with what is
flagged marked."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from report.plots.rocs import Curve, roc_panels
from report.plots.style import INK, LINES, SHAPES, STAR, grid, style, titles
from report.suspects import AtShare, Scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN = LINES[0]


def auroc_by_share(found: Mapping[str, Mapping[str, Mapping[float, AtShare]]], columns: int = 3) -> "Figure":
    """A panel for each attack: AUROC of each detector at each share of poison, a sign for each seed and a line through their
    means; below, a panel each of the twin's pairs at the same thresholds."""
    twins = [attack for attack, lines in found.items() if any(at.of_twin for line in lines.values() for at in line.values())]
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    columns = min(columns, len(found))
    spare = -len(found) % columns  # the twins' panels begin a row
    with style():
        figure, axes = grid(len(found) + (spare + len(twins)) * bool(twins), columns, "poisoned pairs (%)", "", height=2.9)
        shares = {share for lines in found.values() for line in lines.values() for share in line}
        for ax in axes[len(found) : len(found) + spare] if twins else []:
            ax.remove()
        of_twins = axes[len(found) + spare :]
        for ax, (attack, lines) in zip(axes, found.items(), strict=False):
            _lines(ax, {name: {share: at.auroc for share, at in line.items()} for name, line in lines.items()}, names)
            ax.set_title(titles([attack])[0])
            ax.set_ylim(-0.03, 1.03)
            ax.axhline(0.5, color=INK, linestyle=":", linewidth=0.8)
        for ax, attack in zip(of_twins, twins, strict=True):
            lines = found[attack]
            _lines(
                ax, {name: {share: _percent(at.of_twin) for share, at in of.items()} for name, of in lines.items()}, names
            )
            ax.set_title("\n".join(titles([f"{attack}, its twin"])))
            ax.set_ylim(bottom=0)
        for at, ax in enumerate(axes[: len(found)]):
            ax.set_ylabel("AUROC" if at % columns == 0 else "")
        for at, ax in enumerate(of_twins):
            ax.set_ylabel("flagged (%)" if at % columns == 0 else "")
        axes[0].set_xscale("log")
        axes[0].minorticks_off()
        ticks = sorted(shares)
        for ax in (*axes[: len(found)], *of_twins):
            ax.set_xticks([100 * share for share in ticks], [f"{100 * share:.3g}" for share in ticks])
            ax.tick_params(labelbottom=True)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6 if columns > 1 else 3, frameon=False, fontsize=9)
    return figure


def _percent(rates: list[float]) -> list[float]:
    return [100 * rate for rate in rates]


def _lines(ax: "Axes", found: Mapping[str, Mapping[float, list[float]]], names: list[str]) -> None:
    """A line for each detector through its means at each share, in percent, and a sign for each seed."""
    for name, line in found.items():
        at = names.index(name)
        look: dict[str, Any] = {"color": LINES[at % len(LINES)], "marker": SHAPES[at % len(SHAPES)]}
        known = {100 * share: numbers for share, numbers in line.items() if numbers}
        ax.plot(list(known), list(map(fmean, known.values())), linewidth=1.3, markersize=3, label=name, **look)
        for share, numbers in known.items():
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
