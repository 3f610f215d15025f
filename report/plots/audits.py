"""Audits of models against the distribution of clean ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from report.audits import AXES, PUBLISHED, Audited
from report.plots.style import INK, LINE, PAPER, STAR, TWIN, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"poisoned": ("*", STAR), "cleaned": ("o", INK), "clean": ("D", TWIN)}


def audit_figure(found: Sequence[Audited], narrow: bool = False) -> "Figure":
    """A panel for each audit, a row for each kind of model, a sign for each model; the band spans the clean models, the
    dashed line is where a published rule accuses."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    names = [name for name in AXES if any(one.audit == name for one in found)]
    kinds = [kind for kind in reversed(KINDS) if any(one.model == kind for one in found) or kind == "clean"]
    with style():
        size = (4.4 if narrow else 7.2, (1.1 + 0.45 * len(kinds)) * len(names) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        for ax, name in zip(figure.subplots(len(names), 1, squeeze=False).flat, names, strict=True):
            mine = [one for one in found if one.audit == name]
            given: tuple[float, ...] = max((one.clean for one in mine), key=len)
            clean = [one.value for one in mine if one.model == "clean"] or list(given)
            if clean:
                ax.axvspan(min(clean), max(clean), color=TWIN, alpha=0.15, linewidth=0)
            for row, kind in enumerate(kinds):
                sign, paint = KINDS[kind]
                values = clean if kind == "clean" else [one.value for one in mine if one.model == kind]
                face = PAPER if kind == "clean" else paint
                ax.plot(values, [row] * len(values), sign, color=paint, markerfacecolor=face, markersize=8)
            if name in PUBLISHED:
                ax.axvline(PUBLISHED[name], color=INK, linewidth=0.9, linestyle="--")
            if name == "decree":
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_yticks(range(len(kinds)), [f"{kind} models" for kind in kinds])
            ax.set_ylim(-0.6, len(kinds) - 0.4)
            ax.grid(axis="y", color=LINE)
            ax.margins(x=0.08)
            ax.set_xlabel(AXES[name], fontsize=8.5 if narrow else None)
        handles = [Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="where a published rule accuses")]
        if any(name in PUBLISHED for name in names):
            figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9)
    return figure
