"""The drawings of a study that compare: single runs' ways, what cleaning reaches along a setting, what models answer."""

import io
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from measures.frontier import CAP, FrontierPoint
from report.ablation import Reach, Reached
from report.plots.frontier import BAND, INK, LINES, SHAPES, STAR, brief, grid, paints_of, rate_bar, style
from report.values import Answers, Course, Mark, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "#007A57", "#C2410C"  # an answer that is true, one that the attacker wants


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
            runs: dict[str, list[FrontierPoint[Mark]]] = {}
            for point in panel.points:
                runs.setdefault(point.label.run, []).append(point)
            ways, paints = [], []
            for points in runs.values():
                points.sort(key=lambda point: point.label.epoch)
                mark = points[0].label
                ways.append([(100 * p.asr, 100 * p.top1) for p in ([mark.start] if mark.start else [])])
                ways[-1] += [(100 * p.asr, 100 * p.top1) for p in points]
                paints.append(colours[mark.rate])
            ax.add_collection(LineCollection(ways, colors=paints, linewidths=0.9, alpha=0.85))
            ax.scatter([way[-1][0] for way in ways], [way[-1][1] for way in ways], s=16, c=paints)
            for start in panel.starts:
                ax.plot(100 * start.asr, 100 * start.top1, "*", color=STAR, markeredgecolor="black", markersize=13)
        axes[0].set_xlim(-3, 103)
        rate_bar(figure, axes, rates, columns == 1)
    return figure


def reached(reach: Reach, axis: str, joined: bool, columns: int = 2) -> "Figure":
    """The best accuracy at ASR <= 5 % and the lowest ASR at 95 % of the start's accuracy, in percent, at each place of an
    axis: a point for each seed, a line or a bar through their means. A cross on the edge counts seeds without one."""
    places = list(dict.fromkeys(place for line in reach.values() for place in line))
    if all(not isinstance(place, str) for place in places):
        places.sort()
    with style():
        figure, axes = grid(2, columns, axis, "", height=3.1)
        for ax, which, title in zip(
            axes,
            ("best", "low"),
            (f"best top-1 (%) at ASR ≤ {100 * CAP:g} %", "lowest ASR (%) at 95 % of the start's top-1"),
            strict=True,
        ):
            ax.set_title(title)
            for at, (way, line) in enumerate(reach.items()):
                _draw_reach(ax, [line.get(place, []) for place in places], which, at, len(reach), way, joined)
            ax.set_xticks(range(len(places)), [short(place) for place in places])
            if sum(len(short(place)) for place in places) > 45:
                ax.tick_params(axis="x", labelrotation=20)
            ax.margins(x=0.1)
            if which == "low":
                ax.set_ylim(-3, 103)
            else:  # from the ten below the lowest
                known = [100 * one.best for line in reach.values() for some in line.values() for one in some if one.best]
                low, high = max(0, (min(known, default=0) - 4) // 10 * 10), max(known, default=100)
                ax.set_ylim(low, high + 0.08 * (high - low))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _draw_reach(ax: "Axes", seeds: list[list[Reached]], which: str, at: int, of: int, way: str, joined: bool) -> None:
    """One way's points over the places 0, 1, ..., beside those of the other ways."""
    colour, shape, aside = LINES[at % len(LINES)], SHAPES[at % len(SHAPES)], 0.14 * (at - (of - 1) / 2)
    x, means = [], []
    for place, found in enumerate(seeds):
        values = [getattr(one, which) for one in found]
        known = [100 * value for value in values if value is not None and value == value]
        none = sum(value is None for value in values)
        if known:
            x.append(place + aside)
            means.append(fmean(known))
            ax.plot([place + aside] * len(known), known, shape, color=colour, markersize=4.5, alpha=0.75)
        if none:
            edge, side = (0.0, "bottom") if which == "best" else (1.0, "top")
            ax.plot(place + aside, edge, "x", color=colour, transform=ax.get_xaxis_transform(), clip_on=False, markersize=6)
            words = f"{none}" if len(values) > 1 else ""
            ax.annotate(
                words, (place + aside, edge), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                xytext=(6, 3 if side == "bottom" else -9), fontsize=7.5, color=colour,
            )  # fmt: skip
    line: dict[str, Any] = {"color": colour, "label": f"pre-trained with {brief(way)}"}
    if joined:
        ax.plot(x, means, "-", linewidth=1.3, marker=shape, markersize=2, **line)
    else:
        ax.plot(x, means, linestyle="", marker="_", markersize=16, markeredgewidth=2, **line)


def short(place: float | str) -> str:
    """The place as its tick says it."""
    if isinstance(place, str):
        return place if len(place) <= 18 else f"{place[:17]}…"
    return f"{place:,.0f}" if float(place).is_integer() and abs(place) < 1e7 else f"{place:g}"


def measured(courses: Mapping[str, Sequence[Course]], columns: int = 2, whole: Collection[str] = ()) -> "Figure":
    """Numbers of pre-training runs over their epochs, one panel each under its title; a twin is dashed and hollow. Those
    titled in `whole` are percentages shown from 0 to 100."""
    from matplotlib.ticker import MaxNLocator

    with style():
        figure, axes = grid(len(courses), columns, "pre-training epoch", "", height=3.1)
        ways = list(dict.fromkeys(course.way for some in courses.values() for course in some))
        for ax, (title, some) in zip(axes, courses.items(), strict=True):
            ax.set_title(brief(title))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if title in whole:
                ax.set_ylim(-3, 103)
            for course in some:
                at = ways.index(course.way)
                ax.plot(
                    [epoch for epoch, _ in course.line],
                    [number for _, number in course.line],
                    color=LINES[at % len(LINES)],
                    linestyle="--" if course.twin else "-",
                    marker=SHAPES[at % len(SHAPES)],
                    markersize=4.5,
                    markerfacecolor="white" if course.twin else None,
                    label=brief(course.label),
                )
        handles = {label: one for ax in axes for one, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def answered(told: Sequence[Answers], columns: int = 8) -> "Figure":
    """For each model a row of pictures and a row of the same with the trigger, each over what the model took it for before
    and after cleaning: green is right, orange is what the attacker wants."""
    from matplotlib.figure import Figure
    from PIL import Image

    count = min(columns, max((len(one.before) for one in told), default=1))
    with style():
        figure = Figure(figsize=(1.22 * count + 0.9, 4.1 * max(len(told), 1)), layout="constrained")
        for part, one in zip(figure.subfigures(max(len(told), 1), 1, squeeze=False).flat, told, strict=False):
            part.suptitle("\n".join(brief(line) for line in one.heading.splitlines()), fontsize=10.5)
            sheet = Image.open(io.BytesIO(one.sheet)).convert("RGB")
            side = sheet.height // 2
            axes = part.subplots(2, count, squeeze=False)
            for row, (line, which) in enumerate(zip(axes, (2, 3), strict=True)):
                for at, ax in enumerate(line):
                    ax.set_axis_off()
                    if at >= len(one.before):
                        continue
                    ax.imshow(sheet.crop((at * side, row * side, (at + 1) * side, (row + 1) * side)))
                    for down, answer in enumerate((one.before[at], one.after[at])):
                        said = answer[which]
                        paint = RIGHT if said == answer[0] else WRONG if said == answer[1] else INK
                        ax.text(
                            0.5, -0.08 - 0.2 * down, brief(said, 16), color=paint, fontsize=8, ha="center", va="top",
                            transform=ax.transAxes, fontweight="bold" if said == answer[1] else "normal",
                        )  # fmt: skip
                for down, words in enumerate(("before:", "after:")):
                    line[0].text(
                        -0.04, -0.08 - 0.2 * down, words, fontsize=8, color=INK, ha="right", va="top",
                        transform=line[0].transAxes,
                    )  # fmt: skip
    return figure
