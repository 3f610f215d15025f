"""Detection at test time: ROC curves with the fixed threshold marked, and the frontier after rejecting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from measures.frontier import CAP
from report.plots.style import BAND, INK, LINES, PAPER, SHAPES, STAR, TWIN, asr_axis, grid, style, titles
from report.test_time import Detection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # false positives of the curve that is kept, in percent
STROKES: dict[str, Literal["-", ":", "--"]] = {"poisoned": "-", "cleaned": ":", "twin": "--"}
SIGNS = {"poisoned": ("*", STAR), "cleaned": ("o", INK), "twin": ("D", TWIN)}


def rocs(found: Sequence[Detection], columns: int = 2) -> "Figure":
    """A panel for each detector: the share of triggered pictures found against that of clean ones rejected, in percent; a
    sign is what the threshold fixed on the references gives. A colour for each way of pre-training, a stroke for each
    kind."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator

    detectors, ways = (list(dict.fromkeys(names)) for names in zip(*((one.detector, one.way) for one in found), strict=True))
    with style():
        figure, axes = grid(len(detectors), columns, "clean pictures rejected (%)", "triggered pictures found (%)", 3.3)
        axes[0].set_xscale("symlog", linthresh=0.1, linscale=0.3)
        axes[0].set_xlim(-0.01, 110)
        for ax, detector in zip(axes, detectors, strict=True):
            ax.set_title(detector)
            ax.xaxis.set_major_locator(FixedLocator((0, 0.1, 1, 5, 20, 100)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.set_ylim(-3, 103)
            for one in found:
                if one.detector == detector and len(one.roc) == len(RATES):
                    colour, (sign, _) = LINES[ways.index(one.way) % len(LINES)], SIGNS[one.model]
                    ax.plot(
                        RATES, [100 * rate for rate in one.roc], color=colour, linestyle=STROKES[one.model], linewidth=1.2
                    )
                    at = 100 * one.numbers["fpr"], 100 * one.numbers["tpr"]
                    ax.plot(*at, sign, color=colour, markerfacecolor=PAPER, markersize=8, clip_on=False, zorder=4)
        kinds = [kind for kind in STROKES if any(one.model == kind for one in found)]
        handles = [Line2D([], [], color=INK, linestyle=STROKES[kind], marker=SIGNS[kind][0], label=kind) for kind in kinds]
        for handle in handles:
            handle.set_markerfacecolor(PAPER)
        if len(ways) > 1:
            names = titles(ways, 40)
            handles += [Line2D([], [], color=LINES[at % len(LINES)], label=name) for at, name in enumerate(names)]
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def rejections(found: Sequence[Detection], columns: int = 2) -> "Figure":
    """Accuracy against attack success, a panel for each way of pre-training: each kind of model, and where each detector
    moves it, in percent."""
    from matplotlib.lines import Line2D

    ways, detectors = (list(dict.fromkeys(names)) for names in zip(*((one.way, one.detector) for one in found), strict=True))
    with style():
        figure, axes = grid(len(ways), columns, "ASR after rejecting (%)", "zero-shot top-1 after rejecting (%)")
        asr_axis(axes)
        for ax, way, head in zip(axes, ways, titles(ways), strict=True):
            ax.set_title(head)
            ax.axvspan(-1, 100 * CAP, color=BAND, alpha=0.22, linewidth=0)
            for one in found:
                if one.way == way and one.after is not None:
                    colour, at = LINES[detectors.index(one.detector) % len(LINES)], detectors.index(one.detector)
                    (x, y), (x1, y1) = ([100 * rate for rate in rates] for rates in (one.before, one.after))
                    ax.plot([x, x1], [y, y1], color=colour, linewidth=0.9, linestyle=STROKES[one.model], zorder=2)
                    ax.plot(x1, y1, SHAPES[at % len(SHAPES)], color=colour, markersize=6, clip_on=False, zorder=3)
                    sign, paint = SIGNS[one.model]
                    ax.plot(x, y, sign, color=paint, markersize=11, markeredgecolor=INK, clip_on=False, zorder=4)
        kinds = [kind for kind in SIGNS if any(one.model == kind for one in found)]
        handles = [
            Line2D([], [], color=SIGNS[kind][1], linestyle=STROKES[kind], marker=SIGNS[kind][0], label=kind)
            for kind in kinds
        ]
        for at, detector in enumerate(detectors):
            colour, sign = LINES[at % len(LINES)], SHAPES[at % len(SHAPES)]
            handles.append(Line2D([], [], label=f"after {detector}", color=colour, marker=sign, linestyle=""))
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if columns == 1 else 4, frameon=False, fontsize=9)
    return figure
