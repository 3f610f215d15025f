"""Accuracy against attack success: the frontier of cleaning."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from measures.frontier import CAP, FrontierPoint, best_accuracy, pareto
from report.plots.style import BAND, INK, SHAPES, STAR, TWIN, brief, grid, paints_of, rate_bar, style
from report.points import Panel, PointInfo, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 1_000  # points of one shape; more are a picture in a PDF, which else takes long to write and to open


def frontier(panels: Sequence[Panel], columns: int = 3) -> "Figure":
    """Accuracy against attack success, one panel for each way of pre-training, in percent."""
    rates = sorted({p.label.rate for panel in panels for p in panel.points if p.label.rate is not None})
    kinds = sorted({p.label.objective for panel in panels for p in panel.points})
    shapes = {kind: SHAPES[at % len(SHAPES)] for at, kind in enumerate(kinds)}
    with style():
        figure, axes = grid(max(len(panels), 1), columns, "ASR, attack success (%)", "zero-shot top-1 (%)")
        paints = paints_of(rates)
        for ax, panel in zip(axes, panels, strict=False):
            _draw_panel(ax, panel, shapes, paints)
        for ax, panel in zip(axes, panels, strict=False):
            _ring(ax, panel)  # now that the shared scale is known
        if not panels:
            axes[0].text(50, 0.5, "nothing measured yet", ha="center", color=INK)
        axes[0].set_xlim(-3, 103)
        rate_bar(figure, axes, rates, columns == 1)
        _legend(figure, panels, shapes)
    return figure


def _draw_panel(ax: "Axes", panel: Panel, shapes: dict[str, str], paints: dict[float | None, Any]) -> None:
    """Draws one panel: the band, the start's accuracy, the frontier, and every point."""
    ax.set_title(brief(panel.heading or f"pre-trained with {panel.title}"))
    ax.axvspan(0, 100 * CAP, color=BAND, alpha=0.22, linewidth=0)
    for start in panel.starts:
        ax.axhline(100 * start.top1, color=INK, linestyle="--", linewidth=0.9, zorder=1)
    x, y = _percents(pareto(panel.points))
    ax.step(x, y, where="post", color=INK, linewidth=0.8, alpha=0.6, zorder=1.5)
    for kind, shape in shapes.items():
        mine = _apart([p for p in panel.points if p.label.objective == kind])
        paint = [paints[p.label.rate] for p in mine]
        x, y = _percents(mine)
        look: dict[str, Any] = {"marker": shape, "edgecolors": "white", "linewidths": 0.4, "rasterized": len(mine) > MANY}
        ax.scatter(x, y, s=26, c=paint, zorder=2, **look)
    x, y = _percents(panel.twins)
    ax.scatter(x, y, s=58, marker="D", facecolors="none", edgecolors=TWIN, linewidths=1.5, clip_on=False, zorder=3)
    x, y = _percents(panel.starts)
    ax.scatter(x, y, s=190, marker="*", color=STAR, edgecolors="black", linewidths=0.6, clip_on=False, zorder=4)


def _apart(points: list[FrontierPoint[PointInfo]]) -> list[FrontierPoint[PointInfo]]:
    """The points without those that would be drawn where another of their rate is, to a tenth of a percent."""
    return list({(round(p.asr * 1000), round(p.top1 * 1000), p.label.rate): p for p in points}.values())


def _ring(ax: "Axes", panel: Panel) -> None:
    """Rings the best point within the cap and writes its numbers beside it, or says there is none."""
    best = best_accuracy(panel.points, CAP)
    if best is None:
        if panel.points:
            text = f"no point at ASR ≤ {100 * CAP:g} %"
            ax.text(0.09, 0.04, text, transform=ax.transAxes, color=INK, style="italic")
        return
    at = (100 * best.asr, 100 * best.top1)
    ax.scatter(*at, s=120, facecolors="none", edgecolors="black", linewidths=1.4, zorder=5)
    ax.annotate(
        f"{percent(best.top1)}\nat ASR {percent(best.asr)}",
        at,
        xytext=_free(ax, panel, at),
        textcoords="axes fraction",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8, "shrinkB": 6},
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#BBBBBB", "alpha": 0.92},
        zorder=6,
    )


def _free(ax: "Axes", panel: Panel, at: tuple[float, float]) -> tuple[float, float]:
    """The corner, in fractions of the axes, from which a label of two lines covers the fewest points; near ones first."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left), (y - bottom) / (top - bottom)

    everything = [place(*at)]
    for group in (panel.points, panel.starts, panel.twins):
        everything += [place(x, y) for x, y in zip(*_percents(group), strict=True)]
    wide, high = 0.28, 0.19
    a, b = np.asarray(everything).T

    def cost(corner: tuple[float, float]) -> tuple[int, float]:
        x, y = corner
        covered = int(np.sum((x - 0.03 < a) & (a < x + wide) & (y - 0.04 < b) & (b < y + high)))
        return covered, abs(x - everything[0][0]) + abs(y - everything[0][1])

    corners = [(x / 20, y / 20) for x in range(1, 14) for y in range(1, 16)]
    return min(corners, key=cost)


def _legend(figure: "Figure", panels: Sequence[Panel], shapes: dict[str, str]) -> None:
    """Explains, below the panels, only those signs that are in use."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def sign(marker: str, colour: str, label: str, hollow: bool = False) -> Line2D:
        face = "none" if hollow else colour
        return Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=face, markersize=8, label=label)

    signs: list[Line2D | Patch] = []
    if any(panel.starts for panel in panels):
        signs += [sign("*", STAR, "uncleaned model"), Line2D([], [], color=INK, ls="--", lw=0.9)]
        signs[-1].set_label("its accuracy")
    if any(panel.twins for panel in panels):
        signs.append(sign("D", TWIN, "twin, never poisoned", hollow=True))
    signs += [sign(shape, "#777777", f"cleaned, {kind}") for kind, shape in shapes.items()]
    if shapes:
        signs.append(Line2D([], [], color=INK, lw=0.8, alpha=0.6, label="frontier"))
        signs.append(sign("o", "black", f"best at ASR ≤ {100 * CAP:g} %", hollow=True))
    signs.append(Patch(color=BAND, alpha=0.3, label=f"ASR ≤ {100 * CAP:g} %"))
    columns = 2 if figure.get_figwidth() < 6 else 4
    figure.legend(handles=signs, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _percents(points: Iterable[FrontierPoint[Any]]) -> tuple[list[float], list[float]]:
    """Attack success and accuracy of the points as two lists, in percent."""
    pairs = [(100 * p.asr, 100 * p.top1) for p in points]
    return [x for x, _ in pairs], [y for _, y in pairs]
