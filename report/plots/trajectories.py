"""Single cleaning runs, from the uncleaned model through their epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from measures.frontier import CAP, FrontierPoint
from report.plots.style import BAND, STAR, brief, grid, paints_of, rate_bar, style
from report.points import Panel, PointInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectories(panels: Sequence[Panel], columns: int = 3) -> "Figure":
    """Each cleaning run's way from the uncleaned model through its epochs, accuracy against attack success in percent."""
    from matplotlib.collections import LineCollection

    rates = sorted({p.label.rate for panel in panels for p in panel.points if p.label.rate is not None})
    with style():
        figure, axes = grid(max(len(panels), 1), columns, "ASR, attack success (%)", "zero-shot top-1 (%)")
        colours = paints_of(rates)
        for ax, panel in zip(axes, panels, strict=False):
            ax.set_title(brief(panel.heading or f"pre-trained with {panel.title}"))
            ax.axvspan(0, 100 * CAP, color=BAND, alpha=0.22, linewidth=0)
            runs: dict[str, list[FrontierPoint[PointInfo]]] = {}
            for point in panel.points:
                runs.setdefault(point.label.run, []).append(point)
            ways, paints = [], []
            for points in runs.values():
                points.sort(key=lambda point: point.label.epoch)
                info = points[0].label
                ways.append([(100 * p.asr, 100 * p.top1) for p in ([info.start] if info.start else [])])
                ways[-1] += [(100 * p.asr, 100 * p.top1) for p in points]
                paints.append(colours[info.rate])
            ax.add_collection(LineCollection(ways, colors=paints, linewidths=0.9, alpha=0.85))
            ax.scatter([way[-1][0] for way in ways], [way[-1][1] for way in ways], s=16, c=paints)
            for start in panel.starts:
                ax.plot(100 * start.asr, 100 * start.top1, "*", color=STAR, markeredgecolor="black", markersize=13)
        axes[0].set_xlim(-3, 103)
        rate_bar(figure, axes, rates, columns == 1)
    return figure
