"""What a study says: one frozen Report of it, which page, tables, figures and Markdown are written from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from measures.frontier import CAP, CAPS, FLOOR, FrontierPoint, best_accuracy, lowest_asr
from report.audits import Audited, audits
from report.controls import Control, controls
from report.costs import Costs, costs
from report.differences import Difference, differences, rule_differences
from report.ground import Ground
from report.headline import Verdict, gate_of, grounds_of, headline, mean_text
from report.left_out import Row, left_out
from report.load import Study
from report.persistence import Probed, probed, without_choice
from report.points import Panel, PointInfo, by_seed, panels, percent, rate_text
from report.scores import BEST, LOWEST, Group, Mean, Score, lacking, over_seeds, scores
from report.seeds import count_at_chance
from report.suspects import Scored, scored
from report.test_time import Detection, detections

Tops = list[FrontierPoint[PointInfo] | None]  # a point of each seed, None of one in which none qualifies


class SummaryRow(NamedTuple):
    """A row of the page's small table: what, the number, and a remark on it."""

    what: str
    number: str
    remark: str


@dataclass(frozen=True)
class Judgement:
    """What is computed from panels, once. `notes` say what could not be judged."""

    panels: list[Panel]
    scores: list[Score]
    means: dict[Group, dict[str, Mean]]
    differences: list[Difference]
    rules: list[Difference]  # of what each rule chooses that sees no ASR
    controls: list[Control]
    verdicts: list[Verdict]  # one for each panel
    notes: list[str]

    @property
    def sentences(self) -> list[str]:
        """All that is said: of each way of pre-training, of each cleaner that is no better than scratch, of each difference
        between two ways."""
        said = [verdict.sentence for verdict in self.verdicts] + [one.sentence for one in self.controls if one.sentence]
        return said + [difference.sentence for difference in self.differences]


@dataclass(frozen=True)
class Report:
    """A study, judged. `notes` are what a reader must know before trusting the numbers."""

    study: Study
    judged: Judgement
    summaries: list[list[SummaryRow]]  # one for each panel
    notes: list[str]
    costs: Costs
    test_time: list[Detection]  # what detectors say at test time
    probed: list[Probed]
    audits: list[Audited]
    scored: list[Scored]  # how training pairs were scored
    left_out: list[Row]  # what leaving pairs out of pre-trainings gives


def make_report(study: Study) -> Report:
    """The study's panels, their scores, verdicts, differences, notes and costs, each computed once."""
    judged = judge(panels(study))
    cleaners = list(dict.fromkeys(point.label.objective for panel in judged.panels for point in panel.points))
    shared = _shared_caps(judged.panels)
    scratches = list(dict.fromkeys(point.label.objective for panel in judged.panels for point in panel.scratch))
    summaries = [_summary(panel, cleaners, scratches, shared) for panel in judged.panels]
    told, detected = notes(study, judged.panels), detections(study, judged.panels)
    return Report(
        study, judged, summaries, told, costs(study), detected, probed(study), audits(study), scored(study), left_out(study)
    )


def judge(members: Sequence[Panel]) -> Judgement:
    """The verdict's numbers of these panels."""
    seeds = scores(members)
    verdicts = [headline(panel) for panel in members]
    grounds = {(panel.title, run): reason for panel in members for run, reason in grounds_of(panel).items()}
    bare = {start for start, reason in grounds.items() if reason.look}
    firm = [score for score in seeds if not score.start or (score.group[0], score.start.label.run) not in bare]
    of_controls = controls([_without(panel, bare) for panel in members])
    remarks = lacking(seeds)
    if len(firm) < len(seeds):
        remarks.append(
            f"{len(seeds) - len(firm)} of {len(seeds)} seeds of a cleaner have no ground: no difference counts them."
        )
    apart, of_rules = differences(firm), rule_differences(firm)
    pairs = {one.ways for one in apart if one.compared is not None}
    if len(pairs) > 1:
        remarks.append(
            f"{len(pairs)} pairs of ways of pre-training are compared, each by itself: p is adjusted over the cleaners of a "
            "pair, not over the pairs."
        )
    remarks += _unknown(grounds, firm) if any(one.value is not None for one in apart) else []
    return Judgement(list(members), seeds, over_seeds(seeds), apart, of_rules, of_controls, verdicts, remarks)


def _unknown(grounds: Mapping[tuple[str, str], Ground], counted: Sequence[Score]) -> list[str]:
    """A note if differences count seeds of which nobody knows whether there is ground."""
    starts = [(score.group[0], score.start.label.run) for score in counted if score.start and score.control is None]
    met = [reason.why for start in starts if (reason := grounds.get(start)) is not None and reason.state == "unknown"]
    if not met:
        return []
    return [f"Differences count {len(met)} of {len(starts)} seeds of a cleaner whose ground is not known: {met[0]}."]


def _without(panel: Panel, bare: set[tuple[str, str]]) -> Panel:
    """The panel without the cleanings whose start has no ground."""
    return panel.only(lambda info: info.start is None or (panel.title, info.start.label.run) not in bare)


def _shared_caps(members: Sequence[Panel]) -> list[list[float]]:
    """The caps on ASR, those together whose most accurate points, each seed's, are the same in every panel; none where
    nothing is cleaned."""
    if all(panel.uncleaned for panel in members):
        return []
    out: list[list[float]] = []
    before: list[Tops] = []
    for cap in CAPS:
        best = [_best(panel.points, cap) for panel in members]
        if out and best == before:
            out[-1].append(cap)
        else:
            out.append([cap])
        before = best
    return out


def _summary(
    panel: Panel, cleaners: Sequence[str], scratches: Sequence[str], shared: Sequence[Sequence[float]]
) -> list[SummaryRow]:
    """The panel's rows of the small table: what, the number, and a remark on it; a row for each of the study's cleaners, its
    controls and for caps on ASR that share their point in all panels, so that all panels have the same; of the start
    alone in a study that cleans nothing (`shared` is empty)."""
    start, twin = mean_point(panel.starts), mean_point(panel.twins)
    many, twins = _mean_of_runs(panel.starts), _mean_of_runs(panel.twins)
    beside = ", ".join([f"top-1 {percent(twin.top1)}", *([twins] if twins else [])]) if twin else ""
    rows = [
        SummaryRow("start top-1", percent(start.top1) if start else "none", many),
        SummaryRow("start ASR", percent(start.asr) if start else "none", many),
        SummaryRow("twin ASR", percent(twin.asr) if twin else "none", beside),
    ]
    for caps in shared:
        label = f"best top-1 at ASR ≤ {', '.join(f'{100 * cap:g}' for cap in caps)} %"
        rows.append(_over_seeds(label, _best(panel.points, caps[0]) + _lost(panel)))
    for who in cleaners if len(cleaners) > 1 else ():
        of_cleaner = [point for point in panel.points if point.label.objective == who]
        rows.append(_over_seeds(f"{who}: {BEST.label}", _best(of_cleaner, CAP) + _lost(panel, who)))
    for who in scratches:
        of_scratch = [point for point in panel.scratch if point.label.objective == who]
        rows.append(_over_seeds(f"{who}, the control: {BEST.label}", _best(of_scratch, CAP)))
    if shared:
        rows.append(_over_seeds(LOWEST.label, _lowest(panel.points) + _lost(panel), asr=True))
        done, total = panel.cleanings
        rows.append(SummaryRow("cleaning runs", f"{done} of {total} ended", f"{len(panel.points)} evaluations"))
    return rows


def _mean_of_runs(models: Sequence[FrontierPoint[Any]]) -> str:
    return f"mean of {len(models)} runs" if len(models) > 1 else ""


def _best(points: Iterable[FrontierPoint[PointInfo]], cap: float) -> Tops:
    """Each seed's most accurate point under a cap on ASR."""
    return [best_accuracy(members, cap) for members in by_seed(points).values()]


def _lost(panel: Panel, cleaner: str | None = None) -> Tops:
    """One without a point for each seed of which every cleaning diverged, of all cleaners or of one."""
    return [None] * (len(panel.lost) if cleaner is None else sum(info.objective == cleaner for info in panel.diverged))


def _lowest(points: Iterable[FrontierPoint[PointInfo]]) -> Tops:
    """Each seed's point of lowest ASR, of those that keep FLOOR of the accuracy of the model that they started from."""
    kept = [
        [point for point in members if point.label.start and point.top1 >= FLOOR * point.label.start.top1]
        for members in by_seed(points).values()
    ]
    return [lowest_asr(members, 0.0) for members in kept]


def _over_seeds(what: str, tops: Tops, asr: bool = False) -> SummaryRow:
    """A row for the top-1 (or with `asr` the ASR) of each seed's point: of one seed with which it is, of several the mean
    over those that have one, as the verdict's sentence has it, and how many these are."""
    known, of = [point for point in tops if point], len(tops)
    if not known:
        return SummaryRow(what, "none", f"0 of {of} seeds" if of > 1 else "")
    top1, rate = [point.top1 for point in known], [point.asr for point in known]
    words = [f"top-1 {percent(fmean(top1))}" if asr else f"ASR {percent(fmean(rate))}"]
    some = f"{len(known)} of {of} seeds" if len(known) < of else f"{of} seeds"
    words.append(where(known[0]) if of == 1 else "mean of " * (len(known) > 1) + some)
    if lost := count_at_chance(known):
        words.append(f"{lost} at chance" if of > 1 else "at chance")
    return SummaryRow(what, mean_text(rate if asr else top1), ", ".join(words))


def notes(study: Study, members: Sequence[Panel]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    done, total = sum(record.finished for record in study.records), len(study.records)
    stopped = sum(record.ended for record in study.records) - done
    failed = sum(record.failed is not None for record in study.records)
    words = [f"{stopped} of {total} runs were stopped early by sweep.stop."] if stopped else []
    if failed:
        diverged = sum(record.diverged for record in study.records)
        because = f", {diverged} of them since their numbers were not finite any more" if diverged else ""
        words.append(f"{failed} of {total} runs failed{because}.")
    if (left := total - done - stopped - failed) > 0:
        words.append(f"{done} of {total} runs are finished; {left} are still missing here.")
    words += [unprobed] if (unprobed := without_choice(study)) else []
    if study.probes and not all(record.finished for record in study.probes):
        ended = sum(record.finished for record in study.probes)
        words.append(f"{ended} of {len(study.probes)} probes of cleaned models are finished.")
    for record in (*study.records, *study.probes):
        if record.damaged:
            words.append(f"{record.run.run}/metrics.jsonl has damaged lines, left out: {record.damaged}.")
        words += [f"{fault}; left out." for fault in record.faults]
    anew = [record for record in study.records if any(row.anew for row in record.measures)]
    if anew:
        words.append(
            f"{len(anew)} of {total} runs were measured again on other pictures or labels under the same name, or a twin "
            "under another attack: there only their last epoch counts."
        )
    words += _several_codes(study)
    words += [note for panel in members if (note := gate_of(panel).note)]
    for panel in members:
        twin = mean_point(panel.twins)
        if twin and twin.asr > CAP:
            words.append(
                f"The {panel.title} twin, never poisoned, has itself an ASR of {percent(twin.asr)}: "
                f"a cap of {100 * CAP:g} % asks for less than a clean model reaches on these images."
            )
    if len({panel.title.partition(" · attack ")[0] for panel in members}) < len(members):
        words.append("A model carries several attacks; each is judged by itself, and a model is clean only where all are.")
    of_top1, of_asr = study.compared_images
    if of_top1 and of_asr and of_top1 != of_asr:
        words.append(f"Top-1 is measured on {of_top1}, ASR on {of_asr}.")
    others = {row["images"] for r in study.records for row in r.evaluations} - {of_top1, of_asr}
    if others:
        listed = ", ".join(sorted(others))
        words.append(f"Figures and verdicts are for {of_top1 or of_asr}; results.csv has also {listed}.")
    return words


def _several_codes(study: Study) -> list[str]:
    """A note if runs were made by several states of Antidote's code; cards from before it was written down say nothing."""
    cards = [record.card for record in (*study.records, *study.probes) if record.card is not None]
    made = Counter(card.versions["antidote"] for card in cards if "antidote" in card.versions)
    listed = ", ".join(f"{code} ({runs} run{'s' * (runs > 1)})" for code, runs in made.most_common())
    return (
        [f"Its runs were made by different code: {listed}. What changed may show in the numbers."] if len(made) > 1 else []
    )


def mean_point(points: list[FrontierPoint[Any]]) -> FrontierPoint[str] | None:
    """The mean of the points, or None of none."""
    if not points:
        return None
    return FrontierPoint(fmean(p.asr for p in points), fmean(p.top1 for p in points), "mean")


def where(point: FrontierPoint[PointInfo]) -> str:
    """Which evaluation a point is."""
    rate = f", rate {rate_text(point.label.rate)}" if point.label.rate is not None else ""
    return f"{point.label.objective}{rate}, epoch {point.label.epoch:g}"
