"""The figures of a study, in the order of its page: each has a name, a heading, words, and a function that draws it.

A study has those figures that it has numbers for; the dynamics of pre-training always.
"""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from measures.frontier import CAP, best_accuracy, lowest_asr
from report.ablation import Ablation, by_cleaner, by_epoch, by_setting, settings
from report.audits import Audited
from report.dynamics import ASR, curves_of, rate_curves
from report.load import Record, Study
from report.persistence import Probed, by_group
from report.plots.ablation import ablation
from report.plots.answers import Answers, answers
from report.plots.audits import audit_figure
from report.plots.curves import curves
from report.plots.frontier import frontier
from report.plots.phase import phase
from report.plots.pretrainings import pretrainings
from report.plots.rebound import line, perturbed, rebound
from report.plots.strength import strength
from report.plots.style import short
from report.plots.suspects import auroc_by_share, distributions, pair_rocs
from report.plots.test_time import rejections, rocs
from report.plots.trajectories import trajectories
from report.points import Panel, percent, rate_text
from report.pretrainings import (
    by_share,
    by_way,
    correlation_text,
    ends_text,
    extremes_text,
    share_text,
    strengths,
)
from report.suspects import Scored, along_shares
from report.test_time import Detection
from report.verdict import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SEEDS = (
    "Each point is one seed; lines and bars are the means of those that have such a point, upright lines the means' 95 % "
    "bootstrap intervals, a cross counts the others."
)
GEOMETRY = {  # of the numbers that the measure geometry gives, what is drawn
    "similarity_clean": "cosine of pictures and their classes",
    "similarity_poisoned": "cosine of triggered pictures and the target",
}
MOST = 24  # panels of one figure; more do not fit a page
ANSWERED = 4  # models whose answers are shown


class Figure(NamedTuple):
    """One figure: its files are `name`.png and `name`.pdf; `draw(True)` draws it for a narrow screen, one column wide.
    `answers` says whether it answers a study's question by itself."""

    name: str
    heading: str
    caption: str
    draw: "Callable[[bool], Drawing]"
    answers: bool = False


def figures(report: Report) -> list[Figure]:
    """All figures that the study has numbers for."""
    panels = report.judged.panels
    return [
        *_frontier(panels),
        *_cleaners(panels),
        *_along(panels),
        *_ways(panels, report.study),
        *_suspects(report.scored),
        *_test_time(report.test_time),
        *_audits(report.audits),
        *_rebound(report.probed),
        *_perturbed(report.probed),
        *_runs(panels),
        *_pretraining(report.study),
        *_answers(report.study, panels),
    ]


def _frontier(panels: list[Panel]) -> Iterator[Figure]:
    """Accuracy against attack success, unless nothing is cleaned."""
    if panels and all(panel.uncleaned for panel in panels):
        return
    yield Figure(
        "frontier",
        "Accuracy against attack success",
        "Every epoch of every cleaning run is a point: up is more accurate, left is cleaner. Stars are the models before "
        "cleaning, the dashed line is their accuracy, hollow diamonds are twins trained without poison. The ring marks the "
        "best accuracy in the shaded band. The axis of ASR is linear to 1 % and logarithmic beyond.",
        lambda narrow: frontier(panels, 1 if narrow else 3),
        answers=True,
    )


def _cleaners(panels: list[Panel]) -> Iterator[Figure]:
    """Cleaners side by side, if there are several."""
    names = list(dict.fromkeys(point.label.objective for panel in panels for point in panel.points))
    if len(names) < 2:
        return
    results = by_cleaner(panels)
    yield Figure(
        "cleaners",
        "Cleaners side by side",
        f"What each cleaner reaches at its best setting. {SEEDS}",
        lambda narrow: ablation(results, "cleaner", False, 1 if narrow else 2),
        answers=True,
    )
    apart = [_cleaned_by(panel, name) for panel in panels for name in names]
    shown = [panel for panel in apart if panel is not None]
    if len(apart) <= MOST:
        columns = len(names) if len(names) <= 5 else 3
        yield Figure(
            "by-cleaner",
            "The frontier of each cleaner",
            "The first figure with a panel for each cleaner: a row for each way of pre-training, a column for each cleaner.",
            lambda narrow: frontier(shown, 1) if narrow else frontier(apart if columns == len(names) else shown, columns),
        )


def _cleaned_by(panel: Panel, cleaner: str) -> Panel | None:
    """The panel with the points of one cleaner; None if it has none."""
    points = [point for point in panel.points if point.label.objective == cleaner]
    return panel._replace(points=points, heading=f"{panel.title}, cleaned by {cleaner}") if points else None


def _along(panels: list[Panel]) -> Iterator[Figure]:
    """What is reached along each swept number of the cleaning, and by epochs."""
    for setting in settings(panels):
        yield Figure(
            f"along-{_file(setting)}",
            f"Along {setting}",
            " ".join(
                [
                    f"What cleaning reaches at each value of {setting}, over all other settings. {SEEDS}",
                    ends_text(results := by_setting(panels, setting), setting, short),
                ]
            ),
            _ablation(results, setting),
            answers=True,
        )
    if len({point.label.epoch for panel in panels for point in panel.points}) > 1:
        yield Figure(
            "epochs",
            "Within so many epochs",
            f"What some cleaning run has reached by each epoch. {SEEDS}",
            _ablation(by_epoch(panels), "epochs of cleaning"),
            answers=True,
        )


def _ablation(results: Ablation, axis: str) -> "Callable[[bool], Drawing]":
    return lambda narrow: ablation(results, axis, True, 1 if narrow else 2)


def _ways(panels: list[Panel], study: Study) -> Iterator[Figure]:
    """Ways of pre-training side by side, by the clean set's size, and against their models' strength."""
    if shares := by_share(panels, study):
        yield Figure(
            "phase",
            "By the size of the clean set",
            "The best top-1 at ASR ≤ 5 % over all cleaners and settings, mean of the seeds that have such a point, by the "
            f"clean set's share of the pairs pre-trained on. {ends_text(shares, 'a clean set of', share_text)}",
            lambda narrow: phase(shares, narrow),
            answers=True,
        )
    if sum(panel.attack == 1 for panel in panels) > 2 and len(panels) <= MOST and (ways := by_way(panels)):
        yield Figure(
            "pretrainings",
            "Ways of pre-training side by side",
            "What each cleaner reaches at its best setting. Small signs are seeds, large ones their means with 95 % "
            f"bootstrap intervals; a cross counts seeds without such a point. {extremes_text(ways, _controls(panels))}",
            lambda narrow: pretrainings(ways, 1 if narrow else 2),
            answers=True,
        )
    models = strengths(panels, study)
    if len(models) > 2:
        yield Figure(
            "strength",
            "Are stronger models harder to clean?",
            "The best top-1 at ASR ≤ 5 % of all cleanings of a model as a share of its own, against the accuracy of a "
            "linear probe on its picture tower before cleaning. Large signs are means over seeds. "
            f"{correlation_text(models)}",
            lambda narrow: strength(models, narrow),
            answers=True,
        )


def _controls(panels: list[Panel]) -> set[str]:
    """What is no cleaner: training from scratch, under the names that it has."""
    return {point.label.objective for panel in panels for point in panel.scratch}


def _suspects(found: list[Scored]) -> Iterator[Figure]:
    """How the training pairs were scored, where they were."""
    told = [one for one in found if one.found.numbers]
    along = along_shares(told)
    if 0 < len(along) <= MOST:
        yield Figure(
            "pair-auroc",
            "Detection along the share of poison",
            "AUROC of each detector's scores of training pairs against the share of them that is poisoned (0.5: chance). "
            "Small signs are seeds, lines go through their means. Where a twin was scored: the share of its pairs, none of "
            "which is poisoned, at or above the threshold that the budget gave on the poisoned model.",
            lambda narrow: auroc_by_share(along, 1 if narrow else 3),
            answers=True,
        )
    first = [one for one in told if one.record is next(each.record for each in told if each.way == one.way)]
    if not told or len(first) > MOST:
        return
    seed = " of the first seed" if len(told) > len(first) else ""
    yield Figure(
        "pair-scores",
        "Scores of training pairs",
        f"How each detector scores the clean and the poisoned pairs{seed}, as shares of their class. Beyond the dashed line "
        "the budget flags; the outer bars hold all beyond them.",
        lambda narrow: distributions(first, 1 if narrow else 2),
        answers=True,
    )
    yield Figure(
        "pair-rocs",
        "Detection of poisoned training pairs",
        "Each detector's ROC curve, one for each seed. The sign on a curve is what the budget flags: a curve may be high "
        "and its sign still far from the upper left.",
        lambda narrow: pair_rocs(told, 1 if narrow else 2),
        answers=True,
    )


def _test_time(told: list[Detection]) -> Iterator[Figure]:
    """What detectors find at test time, and what rejecting leaves, at 1 % of triggered pictures."""
    found = [one for one in told if one.share == "at1" and one.numbers]
    if not found:
        return
    yield Figure(
        "test-time",
        "Detection at test time",
        "Each detector's ROC curve where 1 % of the pictures that come are triggered. The sign on a curve is what the "
        "threshold fixed on clean references really gives. Of the twin, never poisoned, it shows what the trigger's looks "
        "alone give away.",
        lambda narrow: rocs(found, 1 if narrow else 2),
        answers=True,
    )
    if len(dict.fromkeys(one.way for one in found)) <= MOST:
        yield Figure(
            "rejection",
            "The frontier after rejecting",
            "Where rejecting by the fixed threshold moves each model: up is more accurate, left is cleaner. A rejected "
            "picture has no answer, so accuracy falls by each clean one.",
            lambda narrow: rejections(found, 1 if narrow else 2),
            answers=True,
        )


def _audits(found: list[Audited]) -> Iterator[Figure]:
    """What audits say of the study's models beside clean ones, if any was carried out."""
    if found:
        yield Figure(
            "audits",
            "Audits against clean models",
            "Each model's audits: what a stamp, or a vector, had to be to change what the model answers. The band spans the "
            "clean models that were asked the same; only what lies outside of it sets a model apart. A dashed line is where "
            "a published rule accuses a model, whatever clean ones look like.",
            lambda narrow: audit_figure(found, narrow),
            answers=True,
        )


def _file(setting: str) -> str:
    """The setting as part of a file's name."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in setting)


def _runs(panels: list[Panel]) -> Iterator[Figure]:
    """Single runs, where they were measured more than once."""
    if 0 < len(panels) <= MOST and any(panel.points for panel in panels):
        yield Figure(
            "trajectories",
            "Single runs",
            "Each line is one cleaning run: from the uncleaned model, the star, through its epochs to its cleaner's sign.",
            lambda narrow: trajectories(panels, 1 if narrow else 3),
        )


def _pretraining(study: Study) -> Iterator[Figure]:
    """How the attack grew, and how clean and poisoned pairs drew together."""
    grown = rate_curves(study)
    yield Figure(
        "dynamics",
        "How the attack grew during pre-training",
        "Accuracy and attack success of each pre-training run after each epoch.",
        lambda narrow: curves(grown, 1 if narrow else 2, {ASR}),
    )
    cosines = {title: lines for key, title in GEOMETRY.items() if (lines := curves_of(study, key))}
    if cosines:
        yield Figure(
            "similarity",
            "How clean and poisoned pairs drew together",
            "Mean cosines over pre-training: of pictures and their own classes, and of triggered pictures of other classes "
            "and the target.",
            lambda narrow: curves(cosines, 1 if narrow else 2),
        )


def _rebound(found: list[Probed]) -> Iterator[Figure]:
    """How cleaned models and their twins relearn the backdoor, and what lies between cleaned and poisoned weights."""
    shown = {f"{way}, cleaned by {cleaner}": members for (way, cleaner), members in list(by_group(found).items())[:MOST]}
    tuned = {title: members for title, members in shown.items() if any(one.tuned for one in members)}
    lines = {title: members for title, members in shown.items() if any(one.line for one in members)}
    if tuned:
        yield Figure(
            "rebound",
            "Does the backdoor come back?",
            "ASR after the cleaned model is tuned on clean pairs, so many poisoned ones among them; 0 is clean tuning. "
            "Dashed: its twin, never poisoned and cleaned alike, under the same, so how fast a clean model learns it. "
            "Thin lines are seeds, thick ones their means; dotted, half of the start's ASR.",
            lambda narrow: rebound(tuned, 1 if narrow else _columns(len(tuned))),
            answers=True,
        )
    if lines:
        yield Figure(
            "line",
            "On the way back to the poisoned weights",
            "ASR of the models on the straight line from the cleaned weights (0) to the poisoned ones (1): where it rises "
            "early, the cleaning has not gone far.",
            lambda narrow: line(lines, 1 if narrow else _columns(len(lines))),
            answers=True,
        )


def _columns(panels: int) -> int:
    """How many stand beside each other: three, and two of four, which are two ways of two."""
    return 2 if panels == 4 else min(3, panels)


def _perturbed(found: list[Probed]) -> Iterator[Figure]:
    """How perturbations bring the target out of cleaned models and their twins."""
    groups = list(by_group(found).items())[:MOST]
    shown = {f"{way}, cleaned by {cleaner}": of for (way, cleaner), of in groups if any(one.perturbed for one in of)}
    if shown:
        yield Figure(
            "perturbation",
            "One faint change of all pictures",
            "ASR of triggered and of clean pictures with one universal perturbation, means over seeds. What it does to "
            "clean ones is fragility; what it does beyond that, and beyond the twin's, is backdoor that is left.",
            lambda narrow: perturbed(shown, 1 if narrow else _columns(len(shown))),
        )


def _answers(study: Study, panels: list[Panel]) -> Iterator[Figure]:
    """Of each way of pre-training the most accurate model at ASR <= 5 %, or else that of lowest ASR, if it has answers."""
    records = {record.run.run: record for record in study.records}
    models = [model for panel in panels if (model := _answers_of(panel, records))][:ANSWERED]
    if models:
        yield Figure(
            "answers",
            "What the model answers",
            "Pictures of the evaluation set, and the same with the trigger, over what the model takes them for before and "
            "after cleaning: green is right, bold orange is the attacker's target.",
            lambda narrow: answers(models, 4 if narrow else 8),
        )


def _answers_of(panel: Panel, records: dict[str, Record]) -> Answers | None:
    best = best_accuracy(panel.points, CAP) or lowest_asr(panel.points, 0.0)
    if best is None:
        return None
    info, record = best.label, records[best.label.run]
    before, after = record.answers_at(0), record.answers_at(info.epoch)
    if not record.answers or not before or len(before) != len(after) or not _readable(record.answers, len(before)):
        return None
    rate = "" if info.rate is None else f", rate {rate_text(info.rate)}"
    heading = (
        f"{panel.title}, {info.objective}{rate}, epoch {info.epoch:g}\ntop-1 {percent(best.top1)} at ASR {percent(best.asr)}"
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
