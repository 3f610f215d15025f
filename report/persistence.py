"""Does the backdoor come back? What the runs say that probe cleaned models (docs/persistence.md), each beside its twin.

Rebound: ASR after less ASR before. n50: the fewest poisoned pairs, of those tried, with which ASR is at least half of the
start's. Relearning advantage: the rebound less that of the twin with as many pairs, mean over the numbers of pairs above
0; over seeds, over the numbers that all were tuned with. a50: the least share of the way to the poisoned weights at which
ASR is at least half of the start's, linear between points. Of a start that had no backdoor (report/ground.py) there is no
half.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

from records.perturbation import Perturbed
from records.study_json import ProbeName
from report.headline import grounds_of
from report.load import Record, Study
from report.points import cleaner_of, panels, percent, timeline, title, way_of
from report.scores import PERCENT, PERCENTAGE_POINTS, Group, Metric, mean_of
from report.seeds import of_seeds

HEADS = (
    "ASR of the start, before, after clean tuning",
    "poisoned pairs to half the start's ASR",
    "the twin's",
    "relearning advantage in points",
    "share of the line to half",
    "ASR with int8, bf16",
    "ASR of the average with the twin",
    "ASR with BatchNorm anew",
    "ASR under perturbations, triggered and clean pictures",
    "the twin's, likewise",
)
COLUMNS = ["way", "cleaner", "seed", "cleaned", "probe", "amount", "twin", "top1", "asr", "rebound", "run"]


@dataclass(frozen=True)
class Rates:
    """What was measured of one model, as fractions, and its run."""

    top1: float | None
    asr: float
    run: str


Perturbations = dict[float, Perturbed]  # by eps


@dataclass
class Probed:
    """A cleaned model, what it started from and its twin, and what became of it under each probe; by pairs, by the share of
    the line, by kind."""

    group: Group
    seed: int | None
    run: str
    start: float  # its ASR
    before: Rates
    twin_before: Rates | None = None
    tuned: dict[float, Rates] = field(default_factory=dict)
    twin_tuned: dict[float, Rates] = field(default_factory=dict)
    line: dict[float, Rates] = field(default_factory=dict)
    others: dict[ProbeName, Rates] = field(default_factory=dict)
    perturbed: Perturbations = field(default_factory=dict)
    twin_perturbed: Perturbations = field(default_factory=dict)
    planted: bool = True  # whether the start had the backdoor

    @property
    def half(self) -> float | None:
        """Of the start's ASR; None of one that had no backdoor."""
        return self.start / 2 if self.planted else None

    @property
    def shared(self) -> set[float]:
        """The numbers of poisoned pairs, above 0, that it was tuned with and its twin too."""
        return (self.tuned.keys() & self.twin_tuned.keys()) - {0.0}

    @property
    def advantage(self) -> float | None:
        """The relearning advantage over all numbers that it shares with its twin."""
        return self.advantage_over(self.shared)

    def advantage_over(self, numbers: Collection[float]) -> float | None:
        """The mean of the rebounds less the twin's with as many pairs; None where one of these was not tried on both."""
        if self.twin_before is None or not numbers or not self.shared.issuperset(numbers):
            return None
        return fmean(
            self.tuned[pairs].asr - self.before.asr - (self.twin_tuned[pairs].asr - self.twin_before.asr)
            for pairs in numbers
        )

    @property
    def a50(self) -> float | None:
        """The share of the line at which ASR first is half of the start's; None where it is nowhere."""
        if self.half is None:
            return None
        return first_at(self.half, {share: rates.asr for share, rates in self.line.items()})


def first_at(level: float, curve: Mapping[float, float]) -> float | None:
    """The least place at which a curve, linear between its points, is at or above a level; None where it is nowhere."""
    points = sorted(curve.items())
    if points and points[0][1] >= level:
        return points[0][0]
    for (low, below), (high, above) in pairwise(points):
        if below < level <= above:
            return low + (high - low) * (level - below) / (above - below)
    return None


def fewest(level: float, tuned: Mapping[float, Rates]) -> float | None:
    """The fewest pairs with which ASR is at or above a level; None where it is with none of those tried."""
    return min((pairs for pairs, rates in tuned.items() if rates.asr >= level), default=None)


def numbers_of_all(members: Iterable[Probed]) -> list[float]:
    """The numbers of poisoned pairs that all models were tuned with that share some with their twins."""
    each = [one.shared for one in members if one.shared]
    return sorted(set.intersection(*each)) if each else []


def probed(study: Study) -> list[Probed]:
    """The cleaned models that were probed, as far as runs have ended."""
    if not study.probes:
        return []
    records = {record.run.run: record for record in study.records}
    first = [panel for panel in panels(study) if panel.attack == 1]
    bare = {run for panel in first for run, reason in grounds_of(panel).items() if reason.look}
    out: dict[str, Probed] = {}
    for record in study.probes:
        probe, rates = record.run.after, _last(record, study) if record.finished else None
        if probe is None or rates is None:
            continue
        if probe.of not in out:
            cleaned = records.get(probe.of)
            begun = _begun(cleaned, records, study)
            if cleaned is None or begun is None:
                continue
            begun.planted = cleaned.run.start not in bare
            out[probe.of] = begun
        one = out[probe.of]
        if probe.kind == "retune":
            (one.twin_tuned if probe.twin else one.tuned)[probe.amount or 0] = rates
            if probe.twin and (twin := records.get(record.run.start or "")) is not None:
                one.twin_before = _last(twin, study)
        elif probe.kind == "perturb":
            found = {} if record.perturbed is None else {each.eps: each for each in record.perturbed.fooled}
            (one.twin_perturbed if probe.twin else one.perturbed).update(found)
        elif probe.kind == "line":
            one.line[probe.amount or 0] = rates
        else:
            one.others[probe.kind] = rates
    return list(out.values())


def _begun(record: Record | None, records: Mapping[str, Record], study: Study) -> Probed | None:
    """A cleaned model before any probe; None where it or its start was not measured."""
    before = None if record is None else _last(record, study)
    if record is None or before is None:
        return None
    start = records.get(record.run.start or "")
    moments = timeline(record if start is None else start, study.compared_images)
    known = [moment.asr for moment in moments if moment.asr is not None]
    if not known:
        return None
    way = title(way_of(record.run if start is None else start.run))
    group = (way, cleaner_of(record.run))
    return Probed(group, record.run.seed, record.run.run, known[0] if start is None else known[-1], before)


def _last(record: Record, study: Study) -> Rates | None:
    """The last rates of a run on the compared images."""
    known = [moment for moment in timeline(record, study.compared_images) if moment.asr is not None]
    return Rates(known[-1].top1, known[-1].asr, record.run.run) if known and known[-1].asr is not None else None


def without_choice(study: Study) -> str | None:
    """What must be said where cleanings have ended and the rule of `after` has chosen none of them; None where it has."""
    ended: dict[tuple[str | None, str | None], list[Record]] = {}
    for record in study.records if study.plan.spec.get("after") else ():
        if record.run.stage == "clean" and record.run.control is None:
            ended.setdefault((record.run.start, record.run.cleaner), []).append(record)
    of = {record.run.after.of for record in study.probes if record.run.after is not None}
    none = [
        members
        for members in ended.values()
        if all(record.end is not None for record in members) and not of & {record.run.run for record in members}
    ]
    if not none:
        return None
    return f"Of {len(none)} of {len(ended)} starts and cleaners no model at a cleaning's end can be chosen: none is probed."


def by_group(found: Iterable[Probed]) -> dict[Group, list[Probed]]:
    """The cleaned models of each way of pre-training and cleaner."""
    out: dict[Group, list[Probed]] = {}
    for one in found:
        out.setdefault(one.group, []).append(one)
    return out


def persistence_rows(found: Iterable[Probed]) -> list[tuple[Group, list[str]]]:
    """For a table under HEADS: the cells of each way and cleaner, means over its seeds with intervals; of numbers of pairs
    each seed's."""
    return [(group, list(_cells(members))) for group, members in by_group(found).items()]


def _cells(members: list[Probed]) -> Iterator[str]:
    clean = [one.tuned[0].asr if 0 in one.tuned else None for one in members]
    yield ", ".join([_rate([one.start for one in members]), _rate([one.before.asr for one in members]), _rate(clean)])
    for of_twin in (False, True):
        yield pairs_to_half(members, of_twin)
    numbers = numbers_of_all(members)
    apart = [one.advantage_over(numbers) for one in members]
    yield of_seeds(mean_of(Metric("advantage", "", PERCENTAGE_POINTS), tuple(apart))) if any_known(apart) else "not run"
    if known := [share for one in members if (share := one.a50) is not None]:
        yield f"{fmean(known):.2f}" + (f" ({len(known)} of {len(members)} seeds)" if len(known) < len(members) else "")
    else:
        yield "none" if any(one.line for one in members) else "not run"
    kinds: tuple[tuple[ProbeName, ...], ...] = (("int8", "bf16"), ("average",), ("norms",))
    for together in kinds:
        yield ", ".join(
            _rate([one.others[kind].asr if kind in one.others else None for one in members]) for kind in together
        )
    yield _perturbed([one.perturbed for one in members])
    yield _perturbed([one.twin_perturbed for one in members])


def _perturbed(members: list[Perturbations]) -> str:
    """Of each eps the means over seeds on triggered and on clean pictures: '8/255: 40.0 %, 5.0 %'."""
    words = []
    for eps in sorted({eps for one in members for eps in one if eps}):
        known = [one[eps] for one in members if eps in one]
        rates = (fmean(one.triggered for one in known), fmean(one.clean for one in known))
        words.append(f"{eps:g}/255: {percent(rates[0])}, {percent(rates[1])}")
    return "; ".join(words) if words else "not run"


def pairs_to_half(members: list[Probed], of_twin: bool) -> str:
    """Of each seed the fewest pairs with which half of the start's ASR is reached, or that none of those tried does."""
    words = [_to_half(one, of_twin) for one in members]
    return ", ".join(words) if len(set(words)) > 1 else words[0]


def _to_half(one: Probed, of_twin: bool) -> str:
    tuned, before = (one.twin_tuned, one.twin_before) if of_twin else (one.tuned, one.before)
    if not tuned or one.half is None:
        return "not run" if not tuned else "no backdoor at the start"
    if before is not None and before.asr >= one.half:
        return "never below half"
    number = fewest(one.half, tuned)
    return f"over {max(tuned):g}" if number is None else f"{number:g}"


def _rate(values: list[float | None] | list[float]) -> str:
    return of_seeds(mean_of(Metric("asr", "", PERCENT), tuple(values))) if any_known(values) else "not run"


def any_known(values: Iterable[float | None]) -> bool:
    """Whether one of them is a number."""
    return any(value is not None for value in values)


def sentences(found: Iterable[Probed]) -> list[str]:
    """Of each way and cleaner how ASR came back at the largest number of pairs that was tried on all models and twins."""
    out = []
    for (way, cleaner), members in by_group(found).items():
        numbers, both = numbers_of_all(members), [one for one in members if one.shared]
        if not numbers:
            continue
        most = numbers[-1]
        own, twins = fmean(one.tuned[most].asr for one in both), fmean(one.twin_tuned[most].asr for one in both)
        some = f" ({len(both)} of {len(members)} seeds)" if len(both) < len(members) else ""
        out.append(
            f"Tuned with {most:g} poisoned pairs, the {way} model cleaned by {cleaner} goes from ASR "
            f"{percent(fmean(one.before.asr for one in both))} to {percent(own)}, its twin to {percent(twins)}{some}."
        )
    return out


def _both(perturbed: Perturbed) -> list[tuple[str, float]]:
    return [("triggered", perturbed.triggered), ("clean", perturbed.clean)]


def table(found: Iterable[Probed]) -> tuple[list[str], list[dict[str, Any]]]:
    """All that was measured, a row each, for a file. Perturbed pictures rebound from the same, unchanged."""
    rows = []
    for one in found:
        unchanged: dict[tuple[str, bool], Rates] = {}
        parts: list[tuple[str, float | None, bool, Rates]] = [("before", None, False, one.before)]
        parts += [("before", None, True, one.twin_before)] if one.twin_before else []
        parts += [("retune", pairs, False, rates) for pairs, rates in sorted(one.tuned.items())]
        parts += [("retune", pairs, True, rates) for pairs, rates in sorted(one.twin_tuned.items())]
        parts += [("line", share, False, rates) for share, rates in sorted(one.line.items())]
        parts += [(kind, None, False, rates) for kind, rates in one.others.items()]
        for of_twin, perturbed in ((False, one.perturbed), (True, one.twin_perturbed)):
            for eps, each in sorted(perturbed.items()):
                told = [(f"perturbed {kind}", Rates(None, asr, "")) for kind, asr in _both(each)]
                parts += [(probe, eps, of_twin, rates) for probe, rates in told]
                unchanged |= {(probe, of_twin): rates for probe, rates in told if eps == 0}
        for probe, amount, of_twin, rates in parts:
            before = one.twin_before if of_twin else one.before
            if probe.startswith("perturbed"):
                before = unchanged.get((probe, of_twin))
            rows.append(
                {
                    "way": one.group[0], "cleaner": one.group[1], "seed": one.seed, "cleaned": one.run, "probe": probe,
                    "amount": amount, "twin": int(of_twin), "top1": rates.top1, "asr": rates.asr,
                    "rebound": rates.asr - before.asr if before else None, "run": rates.run,
                }
            )  # fmt: skip
    return COLUMNS, rows
