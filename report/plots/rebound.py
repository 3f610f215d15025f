"""How a cleaned model answers to probes, and its twin to the same."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from report.persistence import Probed, Rates
from report.plots.style import INK, LINES, PAPER, SHAPES, TWIN, grid, style, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[float, Rates]


def rebound(panels: Mapping[str, Sequence[Probed]], columns: int = 3) -> "Figure":
    """ASR in percent by the number of poisoned pairs tuned with, one panel each under its title: cleaned models whole, their
    twins dashed and hollow, thin lines the seeds, thick ones their means; dotted, half of the start's ASR."""
    places = sorted({pairs for members in panels.values() for one in members for pairs in (*one.tuned, *one.twin_tuned)})
    at = {pairs: float(place) for place, pairs in enumerate(places)}
    with style():
        figure, axes = grid(len(panels), columns, "poisoned pairs tuned with", "ASR (%)", height=3.1)
        for ax, (title, members) in zip(axes, panels.items(), strict=True):
            ax.set_title(titles([title], 40)[0])
            _half(ax, members)
            _draw(ax, members, lambda one: one.twin_tuned, at, twin=True)
            _draw(ax, members, lambda one: one.tuned, at)
            ax.set_xticks(list(at.values()), [f"{pairs:g}" for pairs in at])
            ax.set_ylim(-3, 103)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if columns == 1 else 3, frameon=False, fontsize=9)
    return figure


def line(panels: Mapping[str, Sequence[Probed]], columns: int = 3) -> "Figure":
    """ASR in percent on the straight line from the cleaned weights to the poisoned ones, one panel each under its title."""
    with style():
        figure, axes = grid(len(panels), columns, "share of the way to the poisoned weights", "ASR (%)", height=3.1)
        for ax, (title, members) in zip(axes, panels.items(), strict=True):
            ax.set_title(titles([title], 40)[0])
            _half(ax, members)
            _draw(ax, members, lambda one: one.line, {share: share for one in members for share in one.line})
            ax.set_ylim(-3, 103)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if columns == 1 else 3, frameon=False, fontsize=9)
    return figure


def _half(ax: "Axes", members: Sequence[Probed]) -> None:
    """Half of the starts' ASR, of those that had a backdoor."""
    if halves := [half for one in members if (half := one.half) is not None]:
        ax.axhline(100 * fmean(halves), color=INK, linestyle=":", label="half of the start's ASR")


def perturbed(panels: Mapping[str, Sequence[Probed]], columns: int = 3) -> "Figure":
    """ASR in percent under universal perturbations of at most eps / 255, one panel each under its title: triggered pictures
    whole, clean ones dotted; twins in the twin's colour, hollow."""
    with style():
        figure, axes = grid(len(panels), columns, "largest change of a pixel (of 255)", "ASR (%)", height=3.1)
        for ax, (title, members) in zip(axes, panels.items(), strict=True):
            ax.set_title(titles([title], 40)[0])
            for who, colour, shape in (("twin", TWIN, "D"), ("cleaned model", LINES[0], SHAPES[0])):
                curves = [one.twin_perturbed if who == "twin" else one.perturbed for one in members]
                sizes = sorted({eps for curve in curves for eps in curve})
                for kind, look in (("triggered", "-"), ("clean", ":")):
                    means = [100 * fmean(getattr(curve[eps], kind) for curve in curves if eps in curve) for eps in sizes]
                    ax.plot(
                        sizes, means, look, color=colour, marker=shape, markersize=4.5, label=f"{who}, {kind} pictures",
                        markerfacecolor=PAPER if who == "twin" else None,
                    )  # fmt: skip
            ax.set_ylim(-3, 103)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if columns == 1 else 2, frameon=False, fontsize=9)
    return figure


def _draw(
    ax: "Axes", members: Sequence[Probed], of: Callable[[Probed], Curve], at: Mapping[float, float], twin: bool = False
) -> None:
    """The curve of each seed, and the mean of them where they have a point."""
    colour, shape = (TWIN, "D") if twin else (LINES[0], SHAPES[0])
    look = "--" if twin else "-"
    for one in members if len(members) > 1 else ():
        curve = sorted(of(one).items())
        ax.plot([at[x] for x, _ in curve], [100 * rates.asr for _, rates in curve], look, color=colour, lw=0.7, alpha=0.5)
    places = sorted({place for one in members for place in of(one)})
    means = [100 * fmean(of(one)[place].asr for one in members if place in of(one)) for place in places]
    ax.plot(
        [at[place] for place in places], means, look, color=colour, marker=shape, markersize=4.5,
        markerfacecolor=PAPER if twin else None, label="twin after the same cleaning" if twin else "cleaned model",
    )  # fmt: skip
