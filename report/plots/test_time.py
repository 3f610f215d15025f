"""Detection at test time: ROC curves with the fixed threshold marked, and the frontier after rejecting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from measures.frontier import CAP
from measures.rejection_rates import ROC
from report.plots.rocs import Curve, Stroke, roc_panels
from report.plots.style import BAND, INK, LINES, SHAPES, STAR, TWIN, asr_axis, grid, style, titles
from report.test_time import Detection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STROKES: dict[str, Stroke] = {"poisoned": "-", "cleaned": ":", "twin": "--"}
SIGNS = {"poisoned": ("*", STAR), "cleaned": ("o", INK), "twin": ("D", TWIN)}


def rocs(found: Sequence[Detection], columns: int = 2) -> "Figure":
    """A panel for each detector: the share of triggered pictures found against that of clean ones rejected, in percent; a
    sign is what the threshold fixed on the references gives. A colour for each way of pre-training, a stroke for each
    kind."""
    curves = []
    for one in found:
        told = len(one.roc) == len(ROC)
        points = list(zip(ROC, one.roc, strict=True)) if told else []
        at = (one.numbers["fpr"], one.numbers["tpr"]) if told else None
        curves.append(Curve(one.detector, one.way, points, at, STROKES[one.model], SIGNS[one.model][0]))
    kinds = {kind: (STROKES[kind], SIGNS[kind][0]) for kind in STROKES if any(one.model == kind for one in found)}
    return roc_panels(curves, ("clean pictures rejected (%)", "triggered pictures found (%)"), kinds, columns)


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
