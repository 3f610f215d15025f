"""Ways of pre-training compared: what cleaning leaves of each, by the clean set's size, and against the model's strength."""

from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from measures.correlation import Correlation, spearman
from measures.frontier import CAP, best_accuracy
from report.ablation import Ablation, Points, Reached, by_cleaner, by_place
from report.load import Record, Study
from report.points import Panel
from report.scores import BEST, finite, mean_of
from report.seeds import of_seeds

PROBE = "probe_top1"  # of a linear probe on the picture tower: how strong a model is, whatever its captions


class Cleanable(NamedTuple):
    """Of one pre-trained model: its linear probe's accuracy, and of all its cleanings the best top-1 at ASR <= 5 % as a
    share of its own top-1; 0 where there is none."""

    strength: float
    left: float


def by_share(panels: Sequence[Panel], study: Study) -> Ablation:
    """Along the clean set's share of the pairs pre-trained on, as the runs' cards count them, over all settings of those
    cleaners that were tried at two shares or more; empty if none was."""
    cards = {record.run.run: record.card for record in study.records}
    shares = {}
    for record in study.records:
        own, begun = record.card, cards.get(record.run.start or "")
        if record.run.stage == "clean" and own is not None and begun is not None and own.pairs and begun.pairs:
            shares[record.run.run] = own.pairs / begun.pairs
    tried: dict[str, set[float]] = {}
    for point in (point for panel in panels for point in panel.points if point.label.run in shares):
        tried.setdefault(point.label.objective, set()).add(shares[point.label.run])
    compared = {cleaner for cleaner, at in tried.items() if len(at) > 1}
    known = {run: [share] for run, share in shares.items()}
    return by_place(panels, lambda info: known.get(info.run, []) if info.objective in compared else [])


def by_way(panels: Sequence[Panel]) -> Ablation:
    """Of each cleaner, what it reaches on each way of pre-training."""
    out: Ablation = {}
    for way, line in by_cleaner(panels).items():
        for cleaner, reached in line.items():
            out.setdefault(str(cleaner), {})[way] = reached
    return out


def strengths(panels: Sequence[Panel], study: Study) -> dict[str, list[Cleanable]]:
    """Of each way of pre-training its models whose pictures a linear probe was fitted on, and that were cleaned; each once,
    by the first of its attacks."""
    probes = {record.run.run: strength for record in study.records if (strength := _probe(record)) is not None}
    out: dict[str, list[Cleanable]] = {}
    for panel in (panel for panel in panels if panel.attack == 1):
        models: dict[str, Points] = {}
        for point in panel.points:
            if point.label.start is not None and point.label.start.label.run in probes and point.label.start.top1 > 0:
                models.setdefault(point.label.start.label.run, []).append(point)
        for run, points in models.items():
            best, start = best_accuracy(points, CAP), points[0].label.start
            assert start is not None
            left = best.top1 / start.top1 if best else 0.0
            out.setdefault(panel.title, []).append(Cleanable(probes[run], left))
    return out


def _probe(record: Record) -> float | None:
    """The probe's accuracy on a finished pre-training's model, as last measured."""
    if record.run.stage != "pretrain" or not record.finished:
        return None
    known = finite([row.get(PROBE) for row in record.evaluations])
    return known[-1] if known else None


def correlation(models: dict[str, list[Cleanable]]) -> Correlation | None:
    """The rank correlation of strength and what cleaning leaves, over all models; None where there is none."""
    try:
        return spearman([[(model.strength, model.left) for model in of_way] for of_way in models.values()])
    except ValueError:
        return None


def correlation_text(models: dict[str, list[Cleanable]]) -> str:
    """A sentence with the correlation and its interval."""
    found, every = correlation(models), [model for of_way in models.values() for model in of_way]
    of = f"{len(every)} models of {len(models)} ways of pre-training"
    none = sum(model.left == 0 for model in every)
    rest = f" {none} of them, without a point at ASR ≤ {100 * CAP:g} %, count as 0." if none else ""
    if found is None:
        return f"There is no rank correlation over {of}.{rest}"
    between = f" [{found.interval.low:.2f}, {found.interval.high:.2f}]" if found.interval else ""
    return f"Spearman's rank correlation is {found.rho:.2f}{between} over {of}.{rest}"


def ends_text(results: Ablation, axis: str, written: Callable[[float], str]) -> str:
    """A sentence with what each way reaches at the first and at the last number on an axis; empty with fewer than two."""
    places = list(dict.fromkeys(at for line in results.values() for at in line))
    numbers = sorted(at for at in places if not isinstance(at, str))
    ends = [numbers[0], numbers[-1]] if len(numbers) > 1 else []
    parts = []
    for at in ends:
        there = [f"{way} {reached_text(line[at])}" for way, line in results.items() if at in line]
        parts.append(f"at {axis} {written(at)}: {', '.join(there)}")
    return f"Best top-1 at ASR ≤ {100 * CAP:g} % {'; '.join(parts)}." if parts else ""


def extremes_text(results: Ablation, controls: Collection[str] = ()) -> str:
    """A sentence with the way and cleaner that keep most, and those that keep least, at ASR <= 5 %; controls are none."""
    results = {cleaner: line for cleaner, line in results.items() if cleaner not in controls}
    means = [
        (fmean(best), f"{way} cleaned by {cleaner}, {reached_text(reached)}")
        for cleaner, line in results.items()
        for way, reached in line.items()
        if (best := finite([seed.best for seed in reached]))
    ]
    pairs = sum(len(line) for line in results.values())
    if not means:
        return f"No cleaner reached ASR ≤ {100 * CAP:g} % on any of them."
    none = f"; in {pairs - len(means)} of {pairs} no seed has one" if len(means) < pairs else ""
    return f"Best top-1 at ASR ≤ {100 * CAP:g} %: from {min(means)[1]}, to {max(means)[1]}{none}."


def reached_text(reached: Iterable[Reached]) -> str:
    """The mean over seeds of the best top-1 with its interval, how many have one where some have none; 'none' of none."""
    best = tuple(seed.best for seed in reached)
    mean = mean_of(BEST, best)
    return of_seeds(mean) if mean.known else mean.text


def share_text(share: float) -> str:
    """The share as people write it: 0.0025 is '0.25 %'."""
    return f"{100 * share:.3g} %"
