"""Rules by which a defender could choose a cleaned model: none of them sees the attack's success.

Each takes the candidates of one cleaning and the accuracy of the model it started from, and returns one candidate, or None
if none qualifies; a number that is not finite is not known. Of equals the earlier one wins.
"""

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Generic, NamedTuple, TypeGuard, TypeVar

Label = TypeVar("Label")
FLOOR = 0.95  # of the start's accuracy
CAP = 0.05  # of the stand-in attack's success


class Candidate(NamedTuple, Generic[Label]):
    """One cleaned model: its accuracy in [0, 1]; the loss on held-out pairs, the distance of its weights from the start's
    and the success of a stand-in trigger, if known. `label` is the caller's own."""

    top1: float
    val_loss: float | None
    distance: float | None
    proxy_asr: float | None
    label: Label


Rule = Callable[[Iterable[Candidate[Label]], float | None], Candidate[Label] | None]


def by_accuracy(candidates: Iterable[Candidate[Label]], start: float | None = None) -> Candidate[Label] | None:
    """The most accurate candidate."""
    return max((one for one in candidates if _known(one.top1)), key=lambda one: one.top1, default=None)


def by_val_loss(candidates: Iterable[Candidate[Label]], start: float | None = None) -> Candidate[Label] | None:
    """The candidate of lowest validation loss."""
    known = [(one.val_loss, at, one) for at, one in enumerate(candidates) if _known(one.val_loss)]
    return min(known, key=lambda pair: pair[:2])[2] if known else None


def by_distance(candidates: Iterable[Candidate[Label]], start: float | None) -> Candidate[Label] | None:
    """The candidate farthest from the start among those that keep 95 % of the start's accuracy."""
    if not _known(start):
        return None
    kept = [one for one in candidates if _known(one.top1) and one.top1 >= FLOOR * start]
    known = [(-one.distance, at, one) for at, one in enumerate(kept) if _known(one.distance)]
    return min(known, key=lambda pair: pair[:2])[2] if known else None


def by_proxy(candidates: Iterable[Candidate[Label]], start: float | None = None) -> Candidate[Label] | None:
    """The most accurate candidate on which a stand-in trigger succeeds at most 5 % of the time, else the one on which it
    succeeds least."""
    known = [(one.proxy_asr, at, one) for at, one in enumerate(candidates) if _known(one.proxy_asr)]
    held = by_accuracy(one for asr, _, one in known if asr <= CAP)
    return held or (min(known, key=lambda pair: pair[:2])[2] if known else None)


def _known(number: float | None) -> TypeGuard[float]:
    """Whether it is a number."""
    return number is not None and isfinite(number)
