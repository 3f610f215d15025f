"""What cleaning reaches along a setting, by cleaner or by epochs, of each way of pre-training."""

from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from measures.frontier import CAP, FLOOR
from report.ablation import Ablation, Place
from report.plots.style import LINES, SHAPES, grid, short, style, titles
from report.scores import BEST, LOWEST, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NAME, LINE = 20, 45  # letters of a place's name in a line, and of all names beside each other
INTERVALS = 12  # places at which intervals are drawn: each takes a bootstrap, and on more they hide the means


def ablation(results: Ablation, axis: str, joined: bool, columns: int = 2) -> "Figure":
    """The best accuracy at ASR <= 5 % and the lowest ASR at 95 % of the start's accuracy, in percent, at each place of an
    axis: a point for each seed, a line or a bar through their means, at up to INTERVALS places with their 95 % bootstrap
    intervals. A cross on the edge counts seeds without one."""
    places = list(dict.fromkeys(place for line in results.values() for place in line))
    numbers = [float(place) for place in places if not isinstance(place, str)]
    x = dict(zip(places, numbers if joined and len(numbers) == len(places) else range(len(places)), strict=True))
    with style():
        figure, axes = grid(2, columns, axis, "", height=3.1)
        axes[0].set_title(f"best top-1 (%) at ASR ≤ {100 * CAP:g} %")
        axes[1].set_title(f"lowest ASR (%) at {100 * FLOOR:g} % of the start's top-1")
        for ax, at_bottom in zip(axes, (True, False), strict=True):
            for at, (way, line) in enumerate(results.items()):
                aside = 0.0 if joined else 0.14 * (at - (len(results) - 1) / 2)  # points on a true axis lie where they are
                look = _Look(LINES[at % len(LINES)], SHAPES[at % len(SHAPES)], joined, len(places) <= INTERVALS)
                seeds = {x[place] + aside: [run.best if at_bottom else run.low for run in line[place]] for place in line}
                _draw_way(ax, seeds, look, titles([f"pre-trained with {way}"], 50)[0], at_bottom)
            _scale(ax, x)
        known = [100 * run.best for line in results.values() for runs in line.values() for run in runs if run.best]
        low, high = max(0, (min(known, default=0) - 4) // 10 * 10), max(known, default=100)  # from the ten below the lowest
        axes[0].set_ylim(low, high + 0.08 * (high - low))
        axes[1].set_ylim(-3, 103)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _scale(ax: "Axes", x: dict[Place, float]) -> None:
    """Ticks at the places, or at some of them; a logarithmic axis where they span more than a decade and a half."""
    places = sorted(x, key=lambda place: x[place])
    true = all(not isinstance(place, str) and float(place) == x[place] for place in places) and len(places) > 1
    if true and min(x.values()) > 0 and max(x.values()) > 30 * min(x.values()):
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.xaxis.set_major_formatter(lambda value, _: short(value))
    if not true or len(places) <= 8:
        said = titles(map(short, places), NAME)
        ax.set_xticks([x[place] for place in places], said)
        if sum(max(map(len, name.split("\n"))) for name in said) > LINE:
            ax.tick_params(axis="x", labelrotation=30, labelsize=8)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor", linespacing=0.9)
    ax.margins(x=0.1)


class _Look(NamedTuple):
    """How one way of pre-training is drawn: joined by a line or not, with intervals or not."""

    colour: str
    shape: str
    joined: bool
    intervals: bool


def _draw_way(ax: "Axes", seeds: dict[float, list[float | None]], look: _Look, label: str, at_bottom: bool) -> None:
    """One way's points by their places on the axis, its crosses at the bottom or at the top."""
    colour, edge = look.colour, 0.0 if at_bottom else 1.0
    x, means = [], []
    for place, values in seeds.items():
        known = [100 * value for value in values if value is not None and value == value]
        none = sum(value is None for value in values)
        if known:
            x.append(place)
            means.append(fmean(known))
            ax.plot([place] * len(known), known, look.shape, color=colour, markersize=4.5, alpha=0.75)
            between = mean_of(BEST if at_bottom else LOWEST, tuple(values)).interval if look.intervals else None
            if between:
                ax.vlines(place, 100 * between.low, 100 * between.high, color=colour, linewidth=1.0, alpha=0.9)
        if none:
            at = (place, edge)
            ax.plot(*at, "x", color=colour, transform=ax.get_xaxis_transform(), clip_on=False, markersize=6)
            ax.annotate(
                f"{none}" if len(values) > 1 else "", at, xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                xytext=(6, 3 if at_bottom else -9), fontsize=7.5, color=colour,
            )  # fmt: skip
    line: dict[str, Any] = {"color": colour, "label": label}
    if look.joined:
        ax.plot(x, means, "-", linewidth=1.3, marker=look.shape, markersize=2, **line)
    else:
        ax.plot(x, means, linestyle="", marker="_", markersize=16, markeredgewidth=2, **line)
