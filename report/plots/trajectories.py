"""Single cleaning runs, from the uncleaned model through their epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from measures.frontier import CAP, FrontierPoint
from report.plots.style import BAND, INK, MANY, SHAPES, STAR, asr_axis, grid, paints_of, rate_bar, style, titles
from report.points import Panel, PointInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectories(panels: Sequence[Panel], columns: int = 3) -> "Figure":
    """Each cleaning run's way from the uncleaned model through its epochs, accuracy against attack success in percent."""
    from matplotlib.lines import Line2D

    rates = sorted({p.label.rate for panel in panels for p in panel.points if p.label.rate is not None})
    kinds = sorted({p.label.objective for panel in panels for p in panel.points})
    shapes = {kind: SHAPES[at % len(SHAPES)] for at, kind in enumerate(kinds)}
    with style():
        heads = titles(panel.heading or f"pre-trained with {panel.title}" for panel in panels)
        tallest = max((head.count("\n") for head in heads), default=0)
        high = 3.7 + 0.17 * tallest
        figure, axes = grid(max(len(panels), 1), columns, "ASR, attack success (%)", "zero-shot top-1 (%)", high)
        asr_axis(axes)
        colours = paints_of(rates)
        for ax, panel, head in zip(axes, panels, heads, strict=False):
            ax.set_title(head)
            ax.axvspan(-1, 100 * CAP, color=BAND, alpha=0.22, linewidth=0)
            many = len(panel.points) > MANY
            runs: dict[str, list[FrontierPoint[PointInfo]]] = {}
            for point in panel.points:
                runs.setdefault(point.label.run, []).append(point)
            for points in runs.values():
                points.sort(key=lambda point: point.label.epoch)
                info = points[0].label
                way = [(100 * p.asr, 100 * p.top1) for p in ([info.start] if info.start else [])]
                way += [(100 * p.asr, 100 * p.top1) for p in points]
                ax.plot(*zip(*way, strict=True), color=colours[info.rate], linewidth=0.9, alpha=0.85, rasterized=many)
                ax.plot(*way[-1], shapes[info.objective], color=colours[info.rate], markersize=5)
            for start in panel.starts:
                ax.plot(100 * start.asr, 100 * start.top1, "*", color=STAR, markeredgecolor=INK, markersize=13)
        rate_bar(figure, axes, rates, columns == 1)
        signs = [
            Line2D([], [], linestyle="", marker=shape, color="#777777", label=f"cleaned, {kind}")
            for kind, shape in shapes.items()
        ]
        figure.legend(handles=signs, loc="outside lower center", ncols=2 if columns == 1 else 4, frameon=False, fontsize=9)
    return figure
