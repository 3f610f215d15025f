"""What each cleaner reaches on each way of pre-training, one below the other."""

from typing import TYPE_CHECKING

from measures.frontier import CAP, FLOOR
from report.ablation import Ablation, Reached
from report.plots.style import LINES, SHAPES, style, titles
from report.scores import BEST, LOWEST, finite, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pretrainings(results: Ablation, columns: int = 2) -> "Figure":
    """A row for each way of pre-training: the best top-1 at ASR <= 5 % and the lowest ASR at 95 % of the start's top-1, in
    percent. Small signs are seeds, large ones their means, lines the means' 95 % bootstrap intervals; crosses on the edge
    count seeds without such a point. `results`: of each cleaner its ways."""
    from matplotlib.figure import Figure

    ways = list(dict.fromkeys(str(way) for line in results.values() for way in line))
    rows = {way: at for at, way in enumerate(ways)}
    best = finite([seed.best for line in results.values() for reached in line.values() for seed in reached])
    least = 100 * min(best, default=0) // 10 * 10  # the ten below the lowest
    with style():
        high = 1.4 + 0.3 * len(ways) * max(1, len(results) / 2)
        figure = Figure(figsize=(4.5 * columns, high * (3 - columns) + 0.2 * len(results)), layout="constrained")
        axes = list(figure.subplots(3 - columns, columns, squeeze=False).flat)
        axes[0].set_xlabel(f"best top-1 (%) at ASR ≤ {100 * CAP:g} %")
        axes[1].set_xlabel(f"lowest ASR (%) at {100 * FLOOR:g} % of the start's top-1")
        for number, ax in enumerate(axes):
            for at, (cleaner, line) in enumerate(results.items()):
                aside = 0.6 * ((at + 0.5) / len(results) - 0.5)
                look = (LINES[at % len(LINES)], SHAPES[at % len(SHAPES)])
                for way, reached in line.items():
                    _row(ax, rows[str(way)] + aside, reached, look, number == 0)
                ax.plot([], [], look[1], color=look[0], label=titles([f"cleaned by {cleaner}"], 50)[0])
            ax.set_xlim(*((least - 1, 101) if number == 0 else (-3, 103)))
            ax.set_ylim(len(ways) - 0.5, -0.5)
            ax.set_yticks(range(len(ways)), titles(ways, 26) if columns == 1 or number == 0 else [""] * len(ways))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _row(ax: "Axes", y: float, reached: list[Reached], look: tuple[str, str], at_left: bool) -> None:
    """One cleaner's seeds on one way, their mean, its interval."""
    colour, shape = look
    values = [seed.best if at_left else seed.low for seed in reached]
    known = finite(values)
    ax.plot([100 * value for value in known], [y] * len(known), shape, color=colour, markersize=3.5, alpha=0.6)
    mean = mean_of(BEST if at_left else LOWEST, tuple(values))
    if mean.value is not None:
        ax.plot(100 * mean.value, y, shape, color=colour, markersize=7)
    if mean.interval:
        ax.plot([100 * mean.interval.low, 100 * mean.interval.high], [y, y], "-", color=colour, linewidth=1.6)
    if none := sum(value is None for value in values):
        edge = 0.0 if at_left else 1.0
        ax.plot(edge, y, "x", color=colour, transform=ax.get_yaxis_transform(), clip_on=False, markersize=6)
        if len(values) > 1:
            ax.annotate(
                str(none), (edge, y), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
                xytext=(6 if at_left else -10, -3), fontsize=7.5, color=colour,
            )  # fmt: skip
