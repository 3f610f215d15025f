"""Detectors of triggered pictures at test time, on the poisoned models, where 1 % of the pictures are triggered."""

from collections.abc import Iterator
from typing import Any

from report.columns.contract import SHARE_OF_ONE, Counted, Group, Said, Value, average, brief, columns_of, numbers_of, short
from report.load import Record
from report.matrix_runs import Place, Run, as_held, panels_of, plain, row_of
from report.matrix_words import search_words
from report.points import percent
from report.scores import PERCENT, finite
from report.submission import Submission
from report.test_time import DETECTOR

HEADS = (
    *("seed", "AUROC", "TPR", "FPR", "the twin's AUROC", "the twin's FPR"),
    *("ASR, after rejecting", "top-1, after rejecting", "run"),
)
NUMBERS = ("auroc", "tpr", "fpr", "asr", "top1")


class Rejection:
    """The kind of columns."""

    name = "test time"
    columns: tuple[str, ...] = columns_of(
        *("test_auroc", "test_tpr", "test_fpr", "twin_test_auroc", "twin_test_fpr", "asr_after_rejecting"),
        "top1_after_rejecting",
    )

    def values(self, given: Submission, counted: Counted) -> Iterator[Value]:
        """Each detector's numbers on each poisoned pre-training, at its end."""
        for record in given.study.records:
            if record.run.stage != "pretrain":
                continue
            run = as_held(counted, given, record)
            told = _last(run)
            for name in [found[1] for key in told if (found := DETECTOR.fullmatch(key))]:
                place = Place(row_of(run), name, plain(_asked(record, name)))
                yield Value(place, run, "", told)

    def what(self, column: str) -> str:
        """The detector's kind."""
        return column

    def tried(self, group: Group) -> str:
        """The settings that tell it apart."""
        name = group.values[0].place.column
        own, *others = (
            [entry for run in runs for entry in _asked(run.record, name)]
            for runs in (group.runs, *([value.run for value in values] for values in group.beside))
        )
        return search_words(own, others)

    def cells(self, group: Group, what: str) -> Iterator[Said]:
        """The numbers on each attack, beside the twin of the same seed."""
        asked = group.values[0].place.search
        twins = [one for run in group.models.twins for one in run.copies if plain(_asked(one.record, what)) == asked]
        of_twins = {run.decided.seed: _last(run) for run in reversed(twins)}
        for at, panel in enumerate(panels_of(group.models)):
            suffix = f"_{at + 1}" if at else ""
            seeds = [_numbers(value.of, what, suffix) for value in group.values]
            beside = [_numbers(of_twins.get(run.decided.seed, {}), what, suffix) for run in group.runs]
            columns = {name: [one[name] for one in seeds] for name in NUMBERS}
            twin = {name: [one[name] for one in beside] for name in NUMBERS}
            if not finite(columns["auroc"]):
                continue
            rates = f"TPR {brief(columns['tpr'], PERCENT)} at FPR {brief(columns['fpr'], PERCENT)}"
            auroc, others = average(columns["auroc"], SHARE_OF_ONE), brief(twin["auroc"], SHARE_OF_ONE)
            told = {
                "test_auroc": columns["auroc"], "test_tpr": columns["tpr"], "test_fpr": columns["fpr"],
                "twin_test_auroc": twin["auroc"], "twin_test_fpr": twin["fpr"],
                "asr_after_rejecting": columns["asr"], "top1_after_rejecting": columns["top1"],
            }  # fmt: skip
            yield Said(
                attack=at,
                head="AUROC",
                number=auroc,
                sentence=f"{what} tells triggered pictures with an AUROC of {auroc}, on the twins {others}; with the "
                f"threshold that is fixed on clean references, {rates}.",
                numbers={key: mean for name, each in told.items() for key, mean in numbers_of(name, each).items()},
                panel=panel,
                small=[f"threshold fixed on clean references: {rates}", f"AUROC on the twins: {others}"],
                marks=[] if len(finite(twin["auroc"])) == len(seeds) else ["not measured on a twin of each seed"],
                heads=HEADS,
                lines=[_line(*one) for one in zip(group.values, seeds, beside, strict=True)],
            )


def _asked(record: Record, name: str) -> list[dict[str, Any]]:
    """The measure's sections, as the run's end has them."""
    measured = getattr(record.end, "measured", {})
    sections = measured.get("measure") if isinstance(measured, dict) else None
    every = sections if isinstance(sections, list) else []
    return [one for one in every if isinstance(one, dict) and one.get("kind") == name]


def _last(run: Run) -> dict[str, float]:
    """All numbers of a run's last epoch on the compared images."""
    measures, images = run.record.counted, run.given.study.compared_images
    at = max((row.epoch for row in measures), default=0)
    rows = [row.numbers() for row in measures if row.epoch == at and row.images in images]
    return {name: value for numbers in rows for name, value in numbers.items()}


def _numbers(told: dict[str, float], name: str, suffix: str) -> dict[str, float | None]:
    return {key: told.get(f"{name}_{key}_at1{suffix}") for key in NUMBERS}


def _line(value: Value, own: dict[str, float | None], twin: dict[str, float | None]) -> list[str]:
    """The cells of one seed under HEADS."""
    rates = [short(own["auroc"], SHARE_OF_ONE), *(short(own[name], PERCENT) for name in ("tpr", "fpr"))]
    rates += [short(twin["auroc"], SHARE_OF_ONE), short(twin["fpr"], PERCENT)]
    rates += ["" if (rate := own[name]) is None else percent(rate) for name in ("asr", "top1")]
    return [str(value.run.decided.seed), *rates, value.run.record.run.run]
