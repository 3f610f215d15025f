"""What becomes of chosen cleaned models afterwards: does the backdoor come back, and faster than a clean model learns it?"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from records.study_json import StudyJson
from report.columns.cleaner import Cleaner
from report.columns.contract import Counted, Group, Said, Value, average, brief, columns_of, numbers_of, short
from report.costs import costs
from report.load import Record, Study
from report.matrix_runs import panels_of, plain
from report.persistence import Probed, numbers_of_all, pairs_to_half, probed
from report.scores import PERCENT, PERCENTAGE_POINTS, finite
from report.submission import Submission

POINTS = PERCENTAGE_POINTS._replace(sign=" points")
HEADS = (
    *("seed", "ASR of the start", "cleaned", "after clean tuning", "rebound", "the twin's", "relearning advantage"),
    *("poisoned pairs to half the start's ASR", "the twin's", "cleaned model"),
)


class Persistence:
    """The kind of columns."""

    name = "after"
    columns: tuple[str, ...] = columns_of(
        "advantage", "rebound", "twin_rebound", "clean_tuned_asr", "cleaned_asr", "share_of_line"
    )

    def values(self, given: Submission, counted: Counted) -> Iterator[Value]:
        """Each chosen cleaned model, in the place of its cleaner."""
        cleanings = {value.run.record.run.run: value for value in Cleaner().values(given, counted)}
        for one in probed(given.study):
            if (value := cleanings.get(one.run)) is not None:
                search = plain([value.place.search, given.study.plan.spec.get("after")])
                place, run = value.place._replace(search=search), value.run._replace(given=given)
                yield value._replace(place=place, run=run, of=one, numbers=_told(one))

    def what(self, column: str) -> str:
        """The cleaner."""
        return Cleaner().what(column)

    def tried(self, group: Group) -> str:
        """What was tried of the cleaner, before one was chosen of each seed."""
        return Cleaner().tried(group)

    def cells(self, group: Group, what: str) -> Iterator[Said]:
        """Rebound and relearning advantage."""
        found: list[Probed] = [value.of for value in group.values]
        numbers, most = numbers_of_all(found), _most(found)
        advantage = [one.advantage_over(numbers) for one in found]
        told: dict[str, Sequence[float | None]] = {
            "advantage": advantage, "rebound": [_rebound(one, False, most) for one in found],
            "twin_rebound": [_rebound(one, True, most) for one in found],
            "clean_tuned_asr": [one.tuned[0].asr if 0 in one.tuned else None for one in found],
            "cleaned_asr": [one.before.asr for one in found], "share_of_line": [one.a50 for one in found],
        }  # fmt: skip
        pairs = [pairs_to_half(found, of_twin) for of_twin in (False, True)]
        half = f"poisoned pairs to half the start's ASR: {pairs[0]}; the twin's: {pairs[1]}"
        number = average(advantage, POINTS) if finite(advantage) else "not run"
        rebound = f"rebound {brief(told['rebound'], POINTS)}" if finite(told["rebound"]) else "no rebound measured"
        yield Said(
            attack=0,
            head="relearning advantage over the twin",
            number=number,
            sentence=f"Cleaned by {what}, {rebound}, relearning advantage over the twin {number}; {half}.",
            numbers={key: mean for name, each in told.items() for key, mean in numbers_of(name, each).items()},
            panel=panels_of(group.models, group.runs, what)[0],
            small=[rebound, half],
            marks=[] if len(finite(advantage)) == len(found) else ["no twin was tuned beside each cleaned model"],
            heads=HEADS,
            lines=[_line(value) for value in group.values],
            facts=[("probes, fingerprints", ", ".join(record.run.run for record in _probes(group)))],
            costs={"probes": costs(Study(Path(), StudyJson(name="", runs=[]), _probes(group))).sentence},
        )


def _told(one: Probed) -> tuple[float, tuple[tuple[float, float], ...], float | None]:
    return one.before.asr, tuple((pairs, rates.asr) for pairs, rates in sorted(one.tuned.items())), one.advantage


def _most(found: Sequence[Probed]) -> float | None:
    """The largest number of poisoned pairs that all models were tuned with."""
    each = [set(one.tuned) for one in found if one.tuned]
    return max(set.intersection(*each), default=None) if each else None


def _rebound(one: Probed, of_twin: bool, pairs: float | None) -> float | None:
    """ASR after tuning with so many poisoned pairs, less ASR before."""
    tuned, before = (one.twin_tuned, one.twin_before) if of_twin else (one.tuned, one.before)
    return tuned[pairs].asr - before.asr if pairs in tuned and before is not None else None


def _probes(group: Group) -> list[Record]:
    """The runs that probe these models, and their twins."""
    of = {value.of.run for value in group.values}
    every = {
        record.run.run: record
        for run in group.runs for record in run.given.study.probes
        if record.run.after is not None and record.run.after.of in of
    }  # fmt: skip
    return list(every.values())


def _line(value: Value) -> list[str]:
    """The cells of one seed under HEADS."""
    one: Probed = value.of
    clean = one.tuned[0].asr if 0 in one.tuned else None
    rates = [short(rate, PERCENT) for rate in (one.start, one.before.asr, clean)]
    rebounds = [_rebound(one, of_twin, _most([one])) for of_twin in (False, True)]
    points = [short(points, POINTS) for points in (*rebounds, one.advantage)]
    return [str(value.run.decided.seed), *rates, *points, *(pairs_to_half([one], twin) for twin in (False, True)), one.run]
