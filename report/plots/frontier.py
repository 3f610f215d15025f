"""Accuracy against attack success: the frontier of cleaning."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from measures.frontier import CAP, FrontierPoint, best_accuracy, pareto
from report.plots.style import (
    BAND,
    EDGE,
    INK,
    MANY,
    PAPER,
    SHAPES,
    STAR,
    TWIN,
    asr_axis,
    grid,
    paints_of,
    rate_bar,
    style,
    titles,
)
from report.points import Panel, PointInfo, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def frontier(panels: Sequence[Panel | None], columns: int = 3) -> "Figure":
    """Accuracy against attack success, one panel for each way of pre-training, in percent; None keeps a place empty."""
    filled = [panel for panel in panels if panel is not None]
    rates = sorted({p.label.rate for panel in filled for p in panel.points if p.label.rate is not None})
    kinds = sorted({p.label.objective for panel in filled for p in panel.points})
    shapes = {kind: SHAPES[at % len(SHAPES)] for at, kind in enumerate(kinds)}
    with style():
        heads = titles(panel.heading or f"pre-trained with {panel.title}" if panel else "" for panel in panels)
        tallest = max((head.count("\n") for head in heads), default=0)
        figure, axes = grid(
            max(len(panels), 1), columns, "ASR, attack success (%)", "zero-shot top-1 (%)", 3.7 + 0.17 * tallest
        )
        asr_axis(axes)
        paints = paints_of(rates)
        used = [(ax, panel, head) for ax, panel, head in zip(axes, panels, heads, strict=False) if panel is not None]
        for ax, panel, head in used:
            ax.set_title(head)
            _draw_panel(ax, panel, shapes, paints)
        for ax, panel, _ in used:
            _ring(ax, panel)  # now that the shared scale is known
        for ax in axes[: len(panels)]:
            if all(ax is not other for other, _, _ in used):
                ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color=INK, style="italic")
        if not filled:
            axes[0].text(0.5, 0.5, "nothing measured yet", transform=axes[0].transAxes, ha="center", color=INK)
        rate_bar(figure, axes, rates, columns == 1)
        _legend(figure, filled, shapes)
    return figure


def _draw_panel(ax: "Axes", panel: Panel, shapes: dict[str, str], paints: dict[float | None, Any]) -> None:
    """Draws one panel: the band, the start's accuracy, the frontier, and every point."""
    ax.axvspan(-1, 100 * CAP, color=BAND, alpha=0.22, linewidth=0)
    for start in panel.starts:
        ax.axhline(100 * start.top1, color=INK, linestyle="--", linewidth=0.9, zorder=1)
    x, y = _percents(pareto(panel.points))
    ax.step(x, y, where="post", color=INK, linewidth=0.8, alpha=0.6, zorder=1.5)
    for kind, shape in shapes.items():
        mine = _apart([p for p in panel.points if p.label.objective == kind])
        paint = [paints[p.label.rate] for p in mine]
        x, y = _percents(mine)
        look: dict[str, Any] = {"marker": shape, "edgecolors": PAPER, "linewidths": 0.4, "rasterized": len(mine) > MANY}
        ax.scatter(x, y, s=26, c=paint, zorder=2, **look)
    x, y = _percents(panel.twins)
    ax.scatter(x, y, s=58, marker="D", facecolors="none", edgecolors=TWIN, linewidths=1.5, clip_on=False, zorder=3)
    x, y = _percents(panel.starts)
    ax.scatter(x, y, s=190, marker="*", color=STAR, edgecolors=INK, linewidths=0.6, clip_on=False, zorder=4)


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
    ax.scatter(*at, s=120, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=5)
    ax.annotate(
        f"{percent(best.top1)}\nat ASR {percent(best.asr)}",
        at,
        xytext=_free(ax, panel, at),
        textcoords="axes fraction",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 6},
        bbox={"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": EDGE, "alpha": 0.92},
        zorder=6,
    )


def _free(ax: "Axes", panel: Panel, at: tuple[float, float]) -> tuple[float, float]:
    """The corner, in fractions of the axes, from which a label of two lines covers the fewest points; near ones first."""
    everything = [at]
    for group in (panel.points, panel.starts, panel.twins):
        everything += zip(*_percents(group), strict=True)
    wide, high = 0.28, 0.19
    a, b = ax.transLimits.transform(ax.transScale.transform(np.asarray(everything))).T

    def cost(corner: tuple[float, float]) -> tuple[int, float]:
        x, y = corner
        covered = int(np.sum((x - 0.03 < a) & (a < x + wide) & (y - 0.04 < b) & (b < y + high)))
        return covered, float(abs(x - a[0]) + abs(y - b[0]))

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
        signs.append(sign("o", INK, f"best at ASR ≤ {100 * CAP:g} %", hollow=True))
    signs.append(Patch(color=BAND, alpha=0.3, label=f"ASR ≤ {100 * CAP:g} %"))
    columns = 2 if figure.get_figwidth() < 6 else 4
    figure.legend(handles=signs, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _percents(points: Iterable[FrontierPoint[Any]]) -> tuple[list[float], list[float]]:
    """Attack success and accuracy of the points as two lists, in percent."""
    pairs = [(100 * p.asr, 100 * p.top1) for p in points]
    return [x for x, _ in pairs], [y for _, y in pairs]
