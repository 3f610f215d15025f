"""What is left of each way of pre-training at each size of the clean set."""

from typing import TYPE_CHECKING, Any

import numpy as np

from measures.frontier import CAP
from report.ablation import Ablation, Reached
from report.plots.style import style, titles
from report.scores import BEST, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEEP, PALE = "#111111", "#fefefe"  # of a cell's words, on whatever paper: the cell has a colour of its own


def phase(results: Ablation, narrow: bool = False) -> "Figure":
    """A row for each way of pre-training, a column for each share of the clean set on a logarithmic axis. Colour and number:
    the mean over seeds of the best top-1 at ASR <= 5 %, in percent, and how many seeds have one where some have not; 'none'
    where no seed has one."""
    from matplotlib.figure import Figure

    shares = sorted({float(place) for line in results.values() for place in line})
    edges = _edges(shares)
    with style():
        size = (4.6 if narrow else 1.0 * len(shares) + 3.4, 0.55 * len(results) + 1.9)
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        values = np.full((len(results), len(shares)), np.nan)
        for row, line in enumerate(results.values()):
            for place, reached in line.items():
                mean = mean_of(BEST, tuple(seed.best for seed in reached)).value
                values[row, shares.index(float(place))] = np.nan if mean is None else 100 * mean
        mesh = ax.pcolormesh(edges, np.arange(len(results) + 1) - 0.5, values, cmap="cividis", vmin=_floor(values), vmax=100)
        for row, line in enumerate(results.values()):
            for place, reached in line.items():
                _words(ax, (float(place), row), reached, mesh)
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.set_xticks(shares, [f"{100 * share:.3g}" for share in shares])
        ax.set_yticks(range(len(results)), titles(results, 18 if narrow else 30))
        ax.invert_yaxis()
        ax.grid(False)
        ax.set_xlabel("clean pairs (% of those pre-trained on)")
        figure.colorbar(mesh, ax=ax, label="best top-1 (%)" if narrow else f"best top-1 (%) at ASR ≤ {100 * CAP:g} %")
    return figure


def _edges(shares: list[float]) -> np.ndarray:
    """Between neighbouring shares their geometric mean, beyond the outer ones as far as on their other side."""
    logs = np.log(np.asarray(shares))
    middle = (logs[1:] + logs[:-1]) / 2
    edges: np.ndarray = np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))
    return edges


def _floor(values: np.ndarray) -> float:
    """The ten below the lowest value, at most 90."""
    known = values[np.isfinite(values)]
    return float(min(90, max(0, known.min() // 10 * 10))) if len(known) else 0.0


def _words(ax: "Axes", at: tuple[float, int], reached: list[Reached], mesh: Any) -> None:
    """The number of a cell, or that there is none; in what is read best on its colour."""
    mean = mean_of(BEST, tuple(seed.best for seed in reached))
    if mean.value is None:
        ax.text(*at, "none", ha="center", va="center", style="italic", fontsize=8.5)
        return
    red, green, blue, _ = mesh.cmap(mesh.norm(100 * mean.value))
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    some = f"\n{mean.known} of {mean.of}" if mean.known < mean.of else ""
    words = f"{100 * mean.value:.1f}{some}"
    ax.text(*at, words, ha="center", va="center", fontsize=8.5, color=DEEP if light else PALE)
