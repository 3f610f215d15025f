"""What a study says: a sentence for each way of pre-training, its small table, and what to know before trusting it."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from measures.frontier import CAP, CAPS, FLOOR, FrontierPoint, best_accuracy, lowest_asr
from measures.interval import bootstrap
from report.difference import Difference, sentence
from report.load import Study
from report.points import compared_images, panels
from report.values import Mark, Panel, percent, rate_text


class Verdict(NamedTuple):
    """One sentence for one way of pre-training; status is 'cleaned', 'dear', 'partly', 'poisoned' or 'open'."""

    status: str
    sentence: str


def verdict(panel: Panel) -> Verdict:
    """What the panel says, in one sentence with its numbers."""
    best, lowest, start = best_accuracy(panel.points, CAP), lowest_asr(panel.points, 0.0), mean(panel.starts)
    model, under = f"the {panel.title} model", f"ASR ≤ {100 * CAP:g} %"
    begun = f"ASR {percent(start.asr)} at top-1 {percent(start.top1)}" if start else "not measured"
    status = "open"
    if start and start.asr <= CAP:
        said = f"The attack did not take on {model}: {begun} before any cleaning."
    elif best and start and len({point.label.seed for point in panel.points}) > 1:
        status, said = _over_seeds(model, panel.points, start)
    elif best:
        status, said = _cleaned(model, best)
    elif lowest:
        low = f"{percent(lowest.asr)} at top-1 {percent(lowest.top1)}"
        said = f"No cleaning run reached {under} on {model}; lowest was {low} (start {begun})."
        status = "poisoned"
    else:
        said = f"No cleaning run has been measured yet on {model} (start {begun})."
    return Verdict(status, said if panel.finished == panel.total else f"So far: {said}")


def sentences(panels: Sequence[Panel], differences: Sequence[Difference]) -> list[str]:
    """All that is said of a study: of each way of pre-training, and of each difference between two."""
    return [verdict(panel).sentence for panel in panels] + [sentence(one) for one in differences]


def _cleaned(model: str, best: FrontierPoint[Mark]) -> tuple[str, str]:
    """Status and sentence for a model that was cleaned; a loss beyond the floor is spelled out."""
    start, who, top1 = best.label.start, best.label.objective, percent(best.top1)
    if start is None:
        return (
            "open",
            f"Cleaning with {who} brought {model} to ASR {percent(best.asr)} at top-1 {top1} (start not measured).",
        )
    done = f"Cleaning with {who} brought {model} from ASR {percent(start.asr)} to {percent(best.asr)} at top-1 {top1}"
    if best.top1 >= FLOOR * start.top1:
        return "cleaned", f"{done} (start {percent(start.top1)})."
    loss = 100 * (start.top1 - best.top1)
    return "dear", f"{done} (start {percent(start.top1)}), a loss of {loss:.1f} points."


def _over_seeds(model: str, points: Sequence[FrontierPoint[Mark]], start: FrontierPoint[str]) -> tuple[str, str]:
    """Status and sentence for a model of several seeds, at least one of which was cleaned."""
    seeds: dict[int | None, list[FrontierPoint[Mark]]] = {}
    for point in points:
        seeds.setdefault(point.label.seed, []).append(point)
    best = {seed: found for seed, members in seeds.items() if (found := best_accuracy(members, CAP))}
    begun = [point.label.start.top1 for point in best.values() if point.label.start]
    top1 = fmean(point.top1 for point in best.values())
    low, high = bootstrap([point.top1 for point in best.values()])
    count, under = f"in {len(best)} of {len(seeds)} seeds", f"ASR ≤ {100 * CAP:g} %"
    said = f"The best cleaning of each seed brought {model} from ASR {percent(start.asr)} to {under} {count}"
    said += f", at top-1 {percent(top1)}"
    said += f" [{100 * low:.1f}, {100 * high:.1f}]" if len(best) > 1 else ""
    said += f" (start {percent(fmean(begun))})" if begun else ""
    loss = fmean(begun) - top1 if begun else 0.0
    dear = bool(begun) and top1 < FLOOR * fmean(begun)
    said += f", a loss of {100 * loss:.1f} points" if dear else ""
    if len(best) < len(seeds):
        rest = [lowest_asr(members, 0.0) for seed, members in seeds.items() if seed not in best]
        said += f"; elsewhere the lowest ASR was {percent(min(point.asr for point in rest if point))}"
        return "partly", f"{said}."
    return "dear" if dear else "cleaned", f"{said}."


def summary(panel: Panel, cleaners: Sequence[str]) -> list[tuple[str, str, str]]:
    """The panel's rows of the small table: what, the number, and a remark on it; a row for each of the study's cleaners, so
    that all panels have the same."""
    start, twin = mean(panel.starts), mean(panel.twins)
    many = f"mean of {len(panel.starts)} runs" if len(panel.starts) > 1 else ""
    rows = [
        ("start top-1", percent(start.top1) if start else "none", many),
        ("start ASR", percent(start.asr) if start else "none", many),
        ("twin ASR", percent(twin.asr) if twin else "none", f"top-1 {percent(twin.top1)}" if twin else ""),
    ]
    for cap in CAPS:
        best = best_accuracy(panel.points, cap)
        remark = f"ASR {percent(best.asr)}, {where(best)}" if best else ""
        rows.append((f"best top-1 at ASR ≤ {100 * cap:g} %", percent(best.top1) if best else "none", remark))
    for who in cleaners if len(cleaners) > 1 else ():
        best = best_accuracy([point for point in panel.points if point.label.objective == who], CAP)
        remark = f"ASR {percent(best.asr)}, {where(best)}" if best else ""
        rows.append((f"{who}: best top-1 at ASR ≤ {100 * CAP:g} %", percent(best.top1) if best else "none", remark))
    low = lowest_asr(panel.points, FLOOR * start.top1) if start else None
    remark = f"top-1 {percent(low.top1)}, {where(low)}" if low else ""
    what = f"lowest ASR at top-1 ≥ {100 * FLOOR:g} % of start"
    rows.append((what, percent(low.asr) if low else "none", remark))
    return [*rows, ("cleaned points", str(len(panel.points)), f"{panel.finished} of {panel.total} runs done")]


def notes(study: Study) -> list[str]:
    """What a reader must know before trusting the numbers."""
    done, total = sum(record.finished for record in study.records), len(study.records)
    said = [] if done == total else [f"{done} of {total} runs are finished; the rest is still missing here."]
    for record in study.records:
        if record.damaged:
            said.append(f"{record.run.run}/metrics.jsonl has damaged lines, left out: {record.damaged}.")
    for panel in panels(study):
        twin = mean(panel.twins)
        if twin and twin.asr > CAP:
            said.append(
                f"The {panel.title} twin, never poisoned, has itself an ASR of {percent(twin.asr)}: "
                f"a cap of {100 * CAP:g} % asks for less than a clean model reaches on these images."
            )
    of_top1, of_asr = compared_images(study)
    if of_top1 and of_asr and of_top1 != of_asr:
        said.append(f"Top-1 is measured on {of_top1}, ASR on {of_asr}.")
    others = {row["images"] for r in study.records for row in r.evaluations} - {of_top1, of_asr}
    if others:
        listed = ", ".join(sorted(others))
        said.append(f"Figures and verdicts are for {of_top1 or of_asr}; the table has also {listed}.")
    return said


def mean(points: list[FrontierPoint[str]]) -> FrontierPoint[str] | None:
    """The mean of the points, or None of none."""
    if not points:
        return None
    return FrontierPoint(fmean(p.asr for p in points), fmean(p.top1 for p in points), "mean")


def where(point: FrontierPoint[Mark]) -> str:
    """Which evaluation a point is."""
    rate = f", rate {rate_text(point.label.rate)}" if point.label.rate is not None else ""
    return f"{point.label.objective}{rate}, epoch {point.label.epoch:g}"
