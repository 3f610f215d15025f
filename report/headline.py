"""The headline of a way of pre-training: one status and a sentence with its intervals. It calls nothing cleaned that has no
ground (report/ground.py)."""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

from measures.frontier import CAP, FLOOR, FrontierPoint, best_accuracy, lowest_asr
from measures.gate import Gate, gate
from report.controls import beside_scratch, short_of
from report.ground import Ground, Rates, at_chance, between, ground, too_few
from report.points import Origin, Panel, PointInfo, by_seed
from report.scores import BEST, counted, mean_of

Status = Literal[
    "cleaned", "dear", "partly", "scratch", "poisoned", "destroyed", "open", "uncleaned",
    "unlearned", "collapsed", "unplanted", "prevented",
]  # fmt: skip
MEANINGS: dict[Status, str] = {
    "cleaned": "Cleaned",
    "dear": "Cleaned, at a price",
    "partly": "Cleaned in some seeds",
    "scratch": "The model was thrown away: no better than from scratch",
    "poisoned": "Still poisoned",
    "destroyed": "Destroyed, not cleaned",
    "open": "Open",
    "uncleaned": "Nothing was cleaned",
    "unlearned": "No verdict: too little training",
    "collapsed": "No verdict: a collapsed model",
    "unplanted": "No verdict: the backdoor was never planted",
    "prevented": "No verdict: nothing to clean, as pairs were left out",
}
UNDER = f"ASR ≤ {100 * CAP:g} %"
Label = TypeVar("Label", Origin, PointInfo)
Cleaned = FrontierPoint[PointInfo]


class Verdict(NamedTuple):
    """One sentence for one way of pre-training."""

    status: Status
    sentence: str


def grounds_of(panel: Panel) -> dict[str, Ground]:
    """The ground of each start, by its run."""
    return {
        start.label.run: ground(rates(start), _twin(panel, start), panel.fools, panel.left_out) for start in panel.starts
    }


def gate_of(panel: Panel) -> Gate:
    """Whether the attack took in the panel's starts; of one that has learned nothing, or that was pre-trained without the
    pairs that would have planted it, that is what is said instead."""
    grounds, instead = grounds_of(panel), ("unlearned", "collapsed", "prevented")
    learned = [start for start in panel.starts if grounds[start.label.run].state not in instead]
    return gate([(start.asr, asr_text(start)) for start in learned], f"the {panel.title} model")


def headline(panel: Panel) -> Verdict:
    """What the panel says, in one sentence with its numbers."""
    model, grounds = f"the {panel.title} model", grounds_of(panel)
    firm = [start for start in panel.starts if grounds[start.label.run].state == "firm"]
    missing = [(start, grounds[start.label.run]) for start in panel.starts if grounds[start.label.run].state != "firm"]
    if firm:
        runs = {start.label.run for start in firm}
        points = [point for point in panel.points if point.label.start and point.label.start.label.run in runs]
        scratch = [point for point in panel.scratch if point.label.start and point.label.start.label.run in runs]
        verdict = _beside_scratch(_judged(model, points, firm), points, scratch)
        if panel.uncleaned:
            verdict = Verdict("uncleaned", f"{_capital(model)} is not cleaned in this study: {_begun(firm)}.")
        if missing:
            words = " ".join([verdict.sentence, *_ungrounded(model, missing, len(panel.starts))])
            verdict = Verdict("partly" if verdict.status in ("cleaned", "dear") else verdict.status, words)
    elif missing:
        verdict = _without_ground(panel, missing)
    elif panel.without:
        words = (
            f"Only {panel.without} was measured on {model}; a verdict is of zero-shot top-1 and ASR on a set with classes."
        )
        verdict = Verdict("open", words)
    else:
        verdict = _judged(model, panel.points, [])
    if panel.lost:
        more = f"{verdict.sentence} Every cleaning of {len(panel.lost)} seed{'s' * (len(panel.lost) > 1)} diverged."
        verdict = Verdict("partly" if verdict.status in ("cleaned", "dear") else verdict.status, more)
    return verdict if panel.finished == panel.total else Verdict(verdict.status, f"So far: {verdict.sentence}")


def _beside_scratch(verdict: Verdict, points: Sequence[Cleaned], scratch: Sequence[Cleaned]) -> Verdict:
    """The verdict on a cleaned model, which has been thrown away if its best cleanings are no better than scratch."""
    above, interval = beside_scratch(points, scratch)
    if above is None or interval is None or interval.low > 0 or verdict.status not in ("cleaned", "dear", "partly"):
        return verdict
    return Verdict("scratch", f"{verdict.sentence} The model was thrown away: {short_of(above, interval)}.")


def rates(point: FrontierPoint[Label]) -> Rates:
    """What was measured at a point, and of how many pictures."""
    return Rates(point.top1, point.asr, point.label.counts)


def asr_text(point: FrontierPoint[Label]) -> str:
    """The point's ASR with its interval."""
    return between(point.asr, counted(point.asr, point.label.counts.others))


def top1_text(point: FrontierPoint[Label]) -> str:
    """The point's accuracy, likewise."""
    return between(point.top1, counted(point.top1, point.label.counts.pictures))


def _twin(panel: Panel, start: FrontierPoint[Origin]) -> Rates | None:
    """The twin of the start's seed, or else the first."""
    of_seed = [twin for twin in panel.twins if twin.label.seed == start.label.seed]
    return next((rates(twin) for twin in [*of_seed, *panel.twins]), None)


def _ungrounded(model: str, missing: Sequence[tuple[FrontierPoint[Origin], Ground]], of: int) -> list[str]:
    """A sentence for each kind of ground that is missing, of the first start that lacks it."""
    heads = {
        "unlearned": f"Too little training of {model}",
        "collapsed": f"{_capital(model)} has collapsed",
        "unplanted": f"The backdoor was never planted in {model}",
        "prevented": f"{_capital(model)} has no backdoor",
        "unknown": f"Nothing can be said of {model}",
    }
    sentences = []
    for state, head in heads.items():
        kind = [reason for _, reason in missing if reason.state == state]
        if kind:
            where = f" in {len(kind)} of {of} seeds" if of > 1 else ""
            why = f"{kind[0].why} (the first of these)" if len(kind) > 1 else kind[0].why
            sentences.append(f"{head}{where}: {why}. {kind[0].look}".strip())
    return sentences


def _without_ground(panel: Panel, missing: Sequence[tuple[FrontierPoint[Origin], Ground]]) -> Verdict:
    """Where no seed has ground. Numbers are told where it is only not known whether there is any."""
    model, starts = f"the {panel.title} model", [start for start, _ in missing]
    states = list(dict.fromkeys(reason.state for _, reason in missing))
    known: dict[str, Status] = {state: state for state in ("unlearned", "collapsed", "unplanted", "prevented")}
    status = known.get(states[0], "open") if len(states) == 1 else "open"
    if states == ["unknown"]:
        words = _judged(model, panel.points, starts).sentence.removesuffix(".")
        return Verdict("open", f"{words}; {missing[0][1].why}.")
    return Verdict(status, " ".join(_ungrounded(model, missing, len(starts))))


def _judged(model: str, points: Sequence[Cleaned], starts: Sequence[FrontierPoint[Origin]]) -> Verdict:
    """What cleaning did to a model that had learned, and the attack with it."""
    best, lowest = best_accuracy(points, CAP), lowest_asr(points, 0.0)
    if best and starts and len({point.label.seed for point in points}) > 1:
        return _over_seeds(model, points, starts)
    if best:
        return _cleaned(model, best)
    if lowest:
        low = f"{asr_text(lowest)} at top-1 {top1_text(lowest)}"
        return Verdict("poisoned", f"No cleaning run reached {UNDER} on {model}; lowest was {low} (start {_begun(starts)}).")
    return Verdict("open", f"No cleaning run has been measured yet on {model} (start {_begun(starts)}).")


def _begun(starts: Sequence[FrontierPoint[Origin]]) -> str:
    """What was measured of the models before any cleaning: of one with Wilson's intervals, of several their means."""
    if not starts:
        return "not measured"
    if len(starts) == 1:
        return f"ASR {asr_text(starts[0])} at top-1 {top1_text(starts[0])}"
    return f"ASR {mean_text([s.asr for s in starts])} at top-1 {mean_text([s.top1 for s in starts])}, mean of {len(starts)}"


def _cleaned(model: str, best: Cleaned) -> Verdict:
    """Status and sentence for a model that was cleaned; a loss beyond the floor is spelled out."""
    start, who, top1 = best.label.start, best.label.objective, top1_text(best)
    if start is None:
        words = f"Cleaning with {who} brought {model} to ASR {asr_text(best)} at top-1 {top1} (start not measured)."
        return Verdict("open", words)
    begun = f"(start {top1_text(start)})"
    if at_chance(rates(best)):
        return Verdict("destroyed", f"Cleaning destroyed {model}: at {UNDER} its top-1 is at most {top1}, chance {begun}.")
    done = f"Cleaning with {who} brought {model} from ASR {asr_text(start)} to {asr_text(best)} at top-1 {top1} {begun}"
    if too_few(rates(best)):
        return Verdict("open", f"{done}, but {best.label.counts.others:g} pictures are too few to show {UNDER}.")
    if best.top1 >= FLOOR * start.top1:
        return Verdict("cleaned", f"{done}.")
    return Verdict("dear", f"{done}, a loss of {100 * (start.top1 - best.top1):.1f} points.")


def _over_seeds(model: str, points: Sequence[Cleaned], starts: Sequence[FrontierPoint[Origin]]) -> Verdict:
    """Status and sentence for a model of several seeds, at least one of which has a point at that ASR."""
    seeds = by_seed(points)
    reached = {seed: top for seed, members in seeds.items() if (top := best_accuracy(members, CAP))}
    best = {seed: point for seed, point in reached.items() if not at_chance(rates(point))}
    before = mean_text([start.asr for start in starts])
    elsewhere = [lowest_asr(members, 0.0) for seed, members in seeds.items() if seed not in reached]
    rest = [f"; elsewhere the lowest ASR was {mean_text([min(p.asr for p in elsewhere if p)])}"] if any(elsewhere) else []
    rest += [f"; {len(reached) - len(best)} cleaned to {UNDER} are at chance"] if len(best) < len(reached) else []
    if not best:
        words = f"No cleaning run reached {UNDER} above chance on {model} in any of {len(seeds)} seeds (start ASR {before})"
        return Verdict("destroyed" if reached and not elsewhere else "poisoned", f"{words}{''.join(rest)}.")
    begun = [point.label.start.top1 for point in best.values() if point.label.start]
    after = fmean(point.top1 for point in best.values())
    words = (
        f"The best cleaning of each seed brought {model} from ASR {before} to {UNDER} in {len(best)} of {len(seeds)} seeds"
    )
    words += f", at top-1 {mean_text([point.top1 for point in best.values()])} (start {mean_text(begun, brief=True)})"
    dear = after < FLOOR * fmean(begun)
    words += f", a loss of {100 * (fmean(begun) - after):.1f} points" if dear else ""
    if any(too_few(rates(point)) for point in best.values()):
        few = min(point.label.counts.others or 0 for point in best.values())
        return Verdict("open", f"{words}{''.join(rest)}, but {few:g} pictures are too few to show {UNDER}.")
    if len(best) < len(seeds):
        return Verdict("partly", f"{words}{''.join(rest)}.")
    return Verdict("dear" if dear else "cleaned", f"{words}.")


def _capital(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"


def mean_text(values: Sequence[float], brief: bool = False) -> str:
    """The mean of rates in percent, with its bootstrap interval where they differ and unless it is to be brief."""
    mean = mean_of(BEST, tuple(values))
    return between(fmean(values), None if brief or len(set(values)) == 1 else mean.interval)
