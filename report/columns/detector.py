"""Detectors of poisoned training pairs: how well each tells them, and what its budget flags, of the twin's pairs too."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from records.detection import DetectionJson, DetectorResult
from report.columns.contract import SHARE_OF_ONE, Counted, Group, Said, Value, average, brief, columns_of, numbers_of, short
from report.findings import stated
from report.matrix_runs import Place, as_held, panels_of, plain, row_of
from report.matrix_words import search_words
from report.scores import PERCENT, finite
from report.submission import Submission

HEADS = (
    *("seed", "AUROC", "average precision", "flagged", "poisoned among them", "poisoned ones found"),
    *("of the twin's, same threshold", "same rule", "run"),
)


class Found(NamedTuple):
    """What a detector found of a run, in the record of its scores; `of_twin` is the twin's record, if it is there."""

    one: DetectorResult
    record: DetectionJson
    of_twin: DetectionJson | None


class Detector:
    """The kind of columns."""

    name = "detector"
    columns: tuple[str, ...] = columns_of(
        "auroc", "average_precision", "precision", "recall", "twin_flagged", "twin_flagged_by_rule"
    )

    def values(self, given: Submission, counted: Counted) -> Iterator[Value]:
        """Each detector's result on each poisoned pre-training."""
        records = {record.run.run: record for record in given.study.records}
        for record in given.study.records:
            found = record.detection
            if record.run.stage != "pretrain" or found is None:
                continue
            run = as_held(counted, given, record)
            twin = records.get(found.twin or "")
            for one in found.detectors if found.poisoned else ():
                foreign = one.kind == "foreign"
                column = plain([one.title if foreign else one.kind, foreign])
                search = plain({"settings": one.settings, "budget": found.asked.get("budget")})
                of = Found(one, found, None if twin is None else twin.detection)
                told = (one.numbers, one.attacks, one.flagged, one.poisoned_flagged, one.twin)
                yield Value(Place(row_of(run), column, search), run, one.title, of, told)

    def what(self, column: str) -> str:
        """The detector's kind; of another program its name."""
        name, foreign = json.loads(column)
        return f"{name}, of another program" if foreign else str(name)

    def tried(self, group: Group) -> str:
        """The budget, and the settings that tell it apart."""
        own, *others = ([value.of.one.settings for value in values] for values in (group.values, *group.beside))
        budget = group.values[0].of.record.asked.get("budget")
        rule = [f"{name} {rate:g}" for name, rate in _rules(budget)]
        return "; ".join(filter(None, [f"budget: {', '.join(rule)}" if rule else "", search_words(own, others)]))

    def cells(self, group: Group, what: str) -> Iterator[Said]:
        """Its numbers on each attack's pairs."""
        for at, panel in enumerate(panels_of(group.models)):
            seeds = [_numbers(value.of, at) for value in group.values]
            columns = {name: [one[name] for one in seeds] for name in seeds[0]}
            auroc, right, of_twin = (columns[name] for name in ("auroc", "precision", "twin_flagged"))
            flags = f"poisoned of what is flagged: {brief(right, PERCENT)}"
            false = f"flagged of the twin's pairs: {brief(of_twin, PERCENT)}"
            yield Said(
                attack=at,
                head="AUROC",
                number=average(auroc, SHARE_OF_ONE),
                sentence=f"{what} tells poisoned pairs with an AUROC of {average(auroc, SHARE_OF_ONE)}; {flags}; {false}.",
                numbers={key: mean for name, each in columns.items() for key, mean in numbers_of(name, each).items()},
                panel=panel,
                small=[flags, *([false] if finite(of_twin) else [])],
                marks=_marks(group.values, of_twin),
                heads=HEADS,
                lines=[_line(value, numbers) for value, numbers in zip(group.values, seeds, strict=True)],
                costs={"scoring": _cost(group.values)},
                commands=list(filter(None, map(_command, group.values))),
            )


def _command(value: Value) -> str:
    """What scores the run again; empty where its study does."""
    plan, one, budget = value.run.given.study.plan, value.of.one, value.of.record.asked.get("budget")
    if plan.spec.get("detect"):
        return ""
    rule = next(iter(_rules(budget)), None)
    words = ["python", "-m", "engine.detect", "--run", f"runs/{plan.name}/{value.run.record.run.run}"]
    words += [] if one.kind == "foreign" else ["--detector", one.kind]
    return shlex.join([*words, *(["--budget", f"{rule[0]}={rule[1]}"] if rule else [])])


def _rules(budget: Any) -> list[tuple[str, float]]:
    """What is given of a budget."""
    rules = budget.items() if isinstance(budget, dict) else ()
    return [(str(name), rate) for name, rate in rules if isinstance(rate, int | float)]


def _numbers(found: Found, attack: int) -> dict[str, float | None]:
    """Of one run, by name; AUROC and average precision are of the attack's pairs, where there are several."""
    one = found.one
    ranking = one.attacks.get(str(attack + 1), {}) if one.attacks else one.numbers
    right, bad = one.poisoned_flagged, sum(one.poisoned)
    return {
        "auroc": ranking.get("auroc"),
        "average_precision": ranking.get("average_precision"),
        "precision": right / one.flagged if right is not None and one.flagged else None,
        "recall": right / bad if right is not None and bad else None,
        "twin_flagged": one.twin.get("threshold"),
        "twin_flagged_by_rule": one.twin.get("rule"),
    }


def _marks(values: Sequence[Value], of_twin: Sequence[float | None]) -> list[str]:
    known = len(finite(of_twin))
    some = f"the twin's pairs were scored in {known} of {len(values)}" if known else "no twin's pairs were scored"
    marks = [] if known == len(values) else [some]
    said = [mark for value in values for mark in stated(value.of.one, value.of.of_twin)]
    return [*marks, *dict.fromkeys(said)]


def _line(value: Value, numbers: dict[str, float | None]) -> list[str]:
    """The cells of one seed under HEADS."""
    one = value.of.one
    rates = [short(numbers[name], PERCENT) for name in ("precision", "recall", "twin_flagged", "twin_flagged_by_rule")]
    ranking = [short(numbers[name], SHARE_OF_ONE) for name in ("auroc", "average_precision")]
    flagged = f"{one.flagged:,} of {one.scored:,}"
    return [str(value.run.decided.seed), *ranking, flagged, *rates, value.run.record.run.run]


def _cost(values: Sequence[Value]) -> str:
    """What encoding and this detector took."""
    encoding, seconds = (sum(each) for each in zip(*((v.of.record.encoding, v.of.one.seconds) for v in values), strict=True))
    pairs = sum(value.of.record.pairs for value in values)
    shared = f"Encoding {pairs:,} pairs took {encoding:,.1f} s, which all detectors of a run share"
    return f"{shared}; this one took {seconds:,.1f} s."
