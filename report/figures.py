"""The figures of a study, in the order of its page: each has a name, a heading, words, and a function that draws it.

A study has those figures that it has numbers for: the frontier and the dynamics of pre-training always.
"""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from measures.frontier import CAP, best_accuracy, lowest_asr
from report.ablation import by_cleaner, by_epoch, by_setting, settings
from report.load import Record, Study
from report.plots import frontier as figures
from report.plots import lines as series
from report.points import ASR, courses, panels, rates
from report.values import Answers, Panel, percent, rate_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = "Each point is one seed; lines and bars are the means of those that have such a point, a cross counts the others."
GEOMETRY = {  # of the numbers that the measure geometry gives, what is drawn
    "similarity_clean": "cosine of pictures and their classes",
    "similarity_poisoned": "cosine of triggered pictures and the target",
}
MOST = 24  # panels of one figure; more do not fit a page
ANSWERED = 4  # models whose answers are shown


class Plate(NamedTuple):
    """One figure: its files are `name`.png and `name`.pdf; `draw(True)` draws it for a narrow screen, one column wide."""

    name: str
    heading: str
    caption: str
    draw: "Callable[[bool], Figure]"


def plates(study: Study) -> list[Plate]:
    """All figures that the study has numbers for."""
    found = panels(study)
    return [
        _frontier(found),
        *_cleaners(found),
        *_along(found),
        *_runs(found),
        *_pretraining(study),
        *_answers(study, found),
    ]


def _frontier(found: list[Panel]) -> Plate:
    return Plate(
        "frontier",
        "Accuracy against attack success",
        "Every epoch of every cleaning run is a point: up is more accurate, left is cleaner. Stars are the models before "
        "cleaning, the dashed line is their accuracy, hollow diamonds are twins trained without poison. The ring marks the "
        "best accuracy in the shaded band.",
        lambda narrow: figures.frontier(found, 1 if narrow else 3),
    )


def _cleaners(found: list[Panel]) -> Iterator[Plate]:
    """Cleaners side by side, if there are several."""
    names = list(dict.fromkeys(point.label.objective for panel in found for point in panel.points))
    if len(names) < 2:
        return
    reach = by_cleaner(found)
    yield Plate(
        "cleaners",
        "Cleaners side by side",
        f"What each cleaner reaches at its best setting. {SEEDS}",
        lambda narrow: series.reached(reach, "cleaner", False, 1 if narrow else 2),
    )
    apart = [
        panel._replace(
            points=[point for point in panel.points if point.label.objective == name],
            heading=f"{panel.title}, cleaned by {name}",
        )
        for panel in found
        for name in names
        if any(point.label.objective == name for point in panel.points)
    ]
    if len(apart) <= MOST:
        yield Plate(
            "by-cleaner",
            "The frontier of each cleaner",
            "The first figure with a panel for each cleaner.",
            lambda narrow: figures.frontier(apart, 1 if narrow else min(len(names), 3)),
        )


def _along(found: list[Panel]) -> Iterator[Plate]:
    """What is reached along each swept number of the cleaning, and by epochs."""
    for setting in settings(found):
        yield Plate(
            f"along-{_file(setting)}",
            f"Along {setting}",
            f"What cleaning reaches at each value of {setting}, over all other settings. {SEEDS}",
            _reaching(by_setting(found, setting), setting),
        )
    if len({point.label.epoch for panel in found for point in panel.points}) > 1:
        yield Plate(
            "epochs",
            "Within so many epochs",
            f"What some cleaning run has reached by each epoch. {SEEDS}",
            _reaching(by_epoch(found), "epochs of cleaning"),
        )


def _reaching(reach: Any, axis: str) -> "Callable[[bool], Figure]":
    return lambda narrow: series.reached(reach, axis, True, 1 if narrow else 2)


def _file(setting: str) -> str:
    """The setting as part of a file's name."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in setting)


def _runs(found: list[Panel]) -> Iterator[Plate]:
    """Single runs, where they were measured more than once."""
    if 0 < len(found) <= MOST and any(panel.points for panel in found):
        yield Plate(
            "trajectories",
            "Single runs",
            "Each line is one cleaning run: from the uncleaned model, the star, through its epochs to the dot.",
            lambda narrow: series.trajectories(found, 1 if narrow else 3),
        )


def _pretraining(study: Study) -> Iterator[Plate]:
    """How the attack grew, and how clean and poisoned pairs drew together."""
    grown = rates(study)
    yield Plate(
        "dynamics",
        "How the attack grew during pre-training",
        "Accuracy and attack success of each pre-training run after each epoch.",
        lambda narrow: series.measured(grown, 1 if narrow else 2, {ASR}),
    )
    drawn = {title: lines for key, title in GEOMETRY.items() if (lines := courses(study, key))}
    if drawn:
        yield Plate(
            "similarity",
            "How clean and poisoned pairs drew together",
            "Mean cosines over pre-training: of pictures and their own classes, and of triggered pictures of other classes "
            "and the target.",
            lambda narrow: series.measured(drawn, 1 if narrow else 2),
        )


def _answers(study: Study, found: list[Panel]) -> Iterator[Plate]:
    """Of each way of pre-training the most accurate model at ASR <= 5 %, or else that of lowest ASR, if it told answers."""
    records = {record.run.run: record for record in study.records}
    told = [answers for panel in found if (answers := _answers_of(panel, records))][:ANSWERED]
    if told:
        yield Plate(
            "answers",
            "What the model answers",
            "Pictures of the evaluation set, and the same with the trigger, over what the model takes them for before and "
            "after cleaning: green is right, bold orange is the attacker's target.",
            lambda narrow: series.answered(told, 4 if narrow else 8),
        )


def _answers_of(panel: Panel, records: dict[str, Record]) -> Answers | None:
    best = best_accuracy(panel.points, CAP) or lowest_asr(panel.points, 0.0)
    if best is None:
        return None
    mark, record = best.label, records[best.label.run]
    before, after = record.told(0), record.told(mark.epoch)
    if not record.answers or not before or len(before) != len(after) or not _readable(record.answers, len(before)):
        return None
    rate = "" if mark.rate is None else f", rate {rate_text(mark.rate)}"
    heading = (
        f"{panel.title}, {mark.objective}{rate}, epoch {mark.epoch:g}\ntop-1 {percent(best.top1)} at ASR {percent(best.asr)}"
    )
    return Answers(heading, record.answers, before, after)


def _readable(sheet: bytes, count: int) -> bool:
    """Whether the bytes are a picture of two rows of so many squares."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(sheet), formats=["PNG"]) as opened:
            opened.load()
            return opened.width * 2 == opened.height * count
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
