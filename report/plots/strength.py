"""What cleaning leaves of a model, against how strong the model is."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from measures.frontier import CAP
from report.plots.style import LINES, SHAPES, grid, style, titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strength(models: Mapping[str, Sequence[tuple[float, float]]], narrow: bool = False) -> "Figure":
    """A small sign for each pre-trained model, a large one for the mean of its way of pre-training: the accuracy of a linear
    probe on it against the best top-1 at ASR <= 5 % as a share of its own, both in percent."""
    left = f"best top-1 at ASR ≤ {100 * CAP:g} % (% of start's)"
    with style():
        figure, (ax,) = grid(1, 1, "linear probe on the start (%)", left, 4.2)
        if not narrow:
            figure.set_figwidth(6.4)
        for at, (way, points) in enumerate(models.items()):
            colour, shape = LINES[at % len(LINES)], SHAPES[at % len(SHAPES)]
            xs, ys = ([100 * value for value in values] for values in zip(*points, strict=True))
            ax.plot(xs, ys, shape, color=colour, markersize=4, alpha=0.6)
            ax.plot(fmean(xs), fmean(ys), shape, color=colour, markersize=9, label=titles([way], 40)[0])
        ax.set_ylim(bottom=-3)
        figure.legend(loc="outside lower center", ncols=1 if narrow else 2, frameon=False, fontsize=9)
    return figure
