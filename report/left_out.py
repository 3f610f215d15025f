"""What leaving pairs out of a pre-training gives: the poison that is left, the clean pairs that are lost, accuracy and ASR.

A row for what each pre-training leaves out, beside the same with nothing left out, at random and by the true plan, and the
untouched twin; means over seeds. Counts are those of the runs' cards; rates are of the last evaluation of finished runs.
"""

from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any, NamedTuple

from records.study_json import LeftOut
from report.load import Record, Study
from report.points import Moment, timeline, title, way_of
from report.scores import PERCENT, Mean, Metric, counted, mean_of
from report.seeds import of_seeds

HEADS = (
    "pre-trained with",
    "left out",
    "seeds",
    "pairs left out",
    "poisoned pairs left",
    "clean pairs lost",
    "top-1",
    "ASR",
)
NOTHING, TWIN = "nothing", "nothing, never poisoned (twin)"
FIRST = {"nothing": 0, "detector": 1, "file": 1, "random": 2, "plan": 3, "twin": 4}


class Less(NamedTuple):
    """One pre-training: what it leaves out and its numbers; what is not known yet is None."""

    way: str
    what: str
    place: tuple[int, float, int]
    pairs: int | None
    poisoned: int | None  # that are left
    clean: int | None  # that are lost
    moment: Moment | None


class Row(NamedTuple):
    """The pre-trainings that leave out the same, over seeds."""

    way: str
    what: str
    seeds: int
    counts: tuple[float | None, float | None, float | None]
    top1: Mean | None
    asr: Mean | None

    @property
    def cells(self) -> list[str]:
        """In words, under HEADS."""
        counts = ["not known" if count is None else f"{count:,.1f}".removesuffix(".0") for count in self.counts]
        rates = ["not measured" if rate is None else of_seeds(rate) for rate in (self.top1, self.asr)]
        return [self.way, self.what, str(self.seeds), *counts, *rates]

    @property
    def plain(self) -> dict[str, Any]:
        """By the heads, numbers as they are."""
        rates = [None if rate is None else rate.value for rate in (self.top1, self.asr)]
        return dict(zip(HEADS, (self.way, self.what, self.seeds, *self.counts, *rates), strict=True))


def left_out(study: Study) -> list[Row]:
    """A row for what each pre-training of a study leaves out; none if none leaves out anything."""
    groups: dict[tuple[str, str], list[Less]] = {}
    for less in sorted(_all(study), key=lambda less: less.place):
        groups.setdefault((less.way, less.what), []).append(less)
    ways = dict.fromkeys(way for way, _ in groups)
    return [_row(way, what, members) for of in ways for (way, what), members in groups.items() if way == of]


def _all(study: Study) -> Iterator[Less]:
    records = {record.run.run: record for record in study.records}
    wholes: dict[str, None] = {}
    for record in study.records:
        if (less := record.run.without) is not None and less.whole in records:
            wholes[less.whole] = None
            yield _less(study, record, records[less.whole], less)
    for name in wholes:
        whole = records[name]
        yield _untouched(study, whole, whole, NOTHING, "nothing")
        for record in study.records:
            if record.run.stage == "twin" and record.run.seed == whole.run.seed and _is_twin(record, whole):
                yield _untouched(study, record, whole, TWIN, "twin")


def _is_twin(twin: Record, whole: Record) -> bool:
    (objective, settings), (of, own) = way_of(twin.run), way_of(whole.run)
    return objective == of and set(settings) <= set(own)


def _less(study: Study, record: Record, whole: Record, less: LeftOut) -> Less:
    card, before = record.card, whole.card
    pairs = poisoned = clean = None
    if card is not None and before is not None:
        pairs, poisoned = before.pairs - card.pairs, card.poisoned_pairs
        clean = pairs - (before.poisoned_pairs - poisoned)
    place = (FIRST["plan" if less.way == "plan" else "detector"], pairs or 0.0, FIRST[less.way])
    return Less(title(way_of(whole.run)), words(less), place, pairs, poisoned, clean, _end(study, record))


def _untouched(study: Study, record: Record, whole: Record, what: str, kind: str) -> Less:
    place, card = (FIRST[kind], 0.0, 0), record.card
    poisoned = card.poisoned_pairs if card is not None else None
    return Less(title(way_of(whole.run)), what, place, 0, poisoned, 0, _end(study, record))


def _end(study: Study, record: Record) -> Moment | None:
    """What a finished run measured last."""
    moments = timeline(record, study.compared_images)
    return moments[-1] if record.finished and moments else None


def words(less: LeftOut) -> str:
    """What is left out, such as '10 % at random'."""
    if less.way == "plan":
        return "the true plan"
    if less.way == "file":
        return f"pairs in {less.file}"
    many = f"{less.count or 0:,} pairs" if less.share is None else f"{100 * less.share:.6g} %"
    return f"{many} by {less.detector}" if less.way == "detector" else f"{many} at random"


def _row(way: str, what: str, members: list[Less]) -> Row:
    ends = [less.moment for less in members]
    counts = (
        _mean(less.pairs for less in members),
        _mean(less.poisoned for less in members),
        _mean(less.clean for less in members),
    )
    top1 = _rate("top1", [(end.top1, end.counts.pictures) if end else (None, None) for end in ends])
    asr = _rate("asr", [(end.asr, end.counts.others) if end else (None, None) for end in ends])
    return Row(way, what, len(members), counts, top1, asr)


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rate(name: str, rates: list[tuple[float | None, float | None]]) -> Mean | None:
    """The mean over the seeds whose rate is known with the bootstrap's interval; of one seed its rate with Wilson's."""
    known = [(rate, of) for rate, of in rates if rate is not None]
    if not known:
        return None
    mean = mean_of(Metric(name, name, PERCENT), tuple(rate for rate, _ in rates))
    rate, of = known[0]
    return mean._replace(interval=counted(rate, of)) if len(known) == 1 else mean
