"""Whether a verdict has ground: had the model learned, and had the attack taken, before anything was cleaned?

Both by 95 % intervals (Wilson's). A model has learned if its top-1 lies above chance: one in so many classes or, if that is
more, the target's share of the pictures, which a model that answers the target for everything gets right. An attack has
taken if ASR lies above the twin's or, without a twin, above the share of the same pictures that are taken for the target
without the trigger; of a trigger that may fool a model that was never poisoned with it, the twin alone can tell. What a
journal of before November 2026 does not tell is bounded from what it does: there are more classes than the largest k of its
top-k, and no more pictures are taken for the target than are taken for a wrong class.
"""

from typing import Literal, NamedTuple

from measures.frontier import CAP
from measures.interval import Interval
from report.points import Counts, percent
from report.scores import counted

State = Literal["firm", "unlearned", "collapsed", "unplanted", "prevented", "unknown"]
TO_LEARN = (
    "Look at the number of pairs and of epochs, at the learning rate (too low, or so high that the loss never fell), and "
    "whether the captions tell of their pictures."
)
TO_PLANT = (
    "Look at the number of poisoned pairs (the rate or count of attack.poison), at epochs and learning rate, and whether "
    "the trigger outlives how pictures are stored: JPEG and resizing wear small or faint triggers away."
)
PREVENTED = "It was pre-trained without some of the pairs, and no backdoor came of the others: there is nothing to clean."


class Rates(NamedTuple):
    """What was measured of one model: top-1 and ASR as fractions, and of how many pictures they are."""

    top1: float
    asr: float
    counts: Counts


class Ground(NamedTuple):
    """What a verdict can stand on: `firm`, or else what is missing, in a clause (`why`) and with what to look at."""

    state: State
    why: str = ""
    look: str = ""


def ground(start: Rates, twin: Rates | None, fools: bool = False, left_out: bool = False) -> Ground:
    """The ground of a verdict on what started from a model with the rates `start`; `twin` is the same never poisoned,
    `fools` whether the trigger may be one that fools any model: a pattern from a file, which may be optimised, a concept.
    Of a model that was pre-trained without some of the pairs (`left_out`) no backdoor is no fault: it was prevented."""
    found = _ground(start, twin, fools)
    return Ground("prevented", found.why, PREVENTED) if left_out and found.state == "unplanted" else found


def _ground(start: Rates, twin: Rates | None, fools: bool) -> Ground:
    counts = start.counts
    top1, asr = counted(start.top1, counts.pictures), counted(start.asr, counts.others)
    if top1 is None or asr is None:
        return Ground("unknown", "the journals do not tell of how many pictures its rates are, so nothing is judged by them")
    above = _above_chance(start, top1)
    if above is None:
        return Ground("unknown", f"the journals do not tell of how many classes top-1 {between(start.top1, top1)} is")
    if not above:
        return _unlearned(start, top1, asr)
    if start.asr <= CAP:
        return Ground("unplanted", f"ASR was {between(start.asr, asr)} before any cleaning", TO_PLANT)
    if fools and twin is None:
        words = (
            f"without a twin nothing tells whether ASR {between(start.asr, asr)} is more than the trigger does to any model"
        )
        return Ground("unknown", f"{words} (attack.twin: first)")
    return _taken(start, asr, twin)


def _unlearned(start: Rates, top1: Interval, asr: Interval) -> Ground:
    """What is said of a model whose accuracy is not above chance."""
    floor, chance = start.counts.floor, start.counts.chance or start.counts.share or 0.0
    words = f"top-1 {between(start.top1, top1)} is not above chance, {percent(chance)}"
    untouched = None if floor is None else counted(floor, start.counts.others)
    if asr.low > 0.5 and untouched is not None and untouched.high >= asr.low:
        words += f", and it answers the target for everything, with the trigger ({percent(start.asr)}) and without it"
        return Ground("collapsed", f"{words} ({percent(floor or 0.0)})", TO_LEARN)
    if start.top1 > chance:
        words += f" by its interval, or {start.counts.pictures:g} pictures are too few to tell"
    if asr.low > 0.5:
        words += f"; an ASR of {percent(start.asr)} at chance accuracy is no attack"
    return Ground("unlearned", words, TO_LEARN)


def _taken(start: Rates, asr: Interval, twin: Rates | None) -> Ground:
    """Whether the trigger does more to the model than to its twin or, without one, than no trigger does."""
    counts, what = start.counts, "what it is without the trigger"
    rate, most = counts.floor, False
    if twin is not None:
        rate, what, counts = twin.asr, "that of the twin", twin.counts
    elif rate is None and counts.one_set and counts.pictures and counts.others:
        rate, most = min(1.0, (1 - start.top1) * counts.pictures / counts.others), True
    reference = None if rate is None else counted(rate, counts.others)
    if rate is None or reference is None:
        return Ground("unknown", f"the journals do not tell whether ASR {between(start.asr, asr)} is above {what}")
    if asr.low > reference.high:
        return Ground("firm")
    if most:
        return Ground("unknown", f"without a twin it is not recorded whether ASR {between(start.asr, asr)} is above {what}")
    words = f"ASR {between(start.asr, asr)} before any cleaning is not above {what}, {between(rate, reference)}"
    return Ground("unplanted", words, TO_PLANT)


def _above_chance(start: Rates, top1: Interval) -> bool | None:
    """Whether the accuracy lies above chance by its interval; None if chance is not known well enough to tell."""
    counts = start.counts
    if counts.chance is not None:
        return top1.low > counts.chance
    if top1.low > max(1 / counts.least_classes, counts.share or 0.0):
        return True
    return False if counts.share is not None and top1.low <= counts.share else None


def at_chance(cleaned: Rates) -> bool:
    """Whether a cleaned model is known to have lost all that it had learned: top-1 is not above chance."""
    top1, chance = counted(cleaned.top1, cleaned.counts.pictures), cleaned.counts.chance
    return top1 is not None and chance is not None and top1.low <= chance


def too_few(cleaned: Rates) -> bool:
    """Whether ASR is of so few pictures that not even none of them would show it at or below the cap."""
    none = counted(0.0, cleaned.counts.others)
    return none is not None and none.high > CAP


def between(rate: float, interval: Interval | None) -> str:
    """The rate with its interval, in percent: 93.0 % [91.2, 94.5]."""
    return percent(rate) + (f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else "")
