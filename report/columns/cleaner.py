"""Cleaners: what a cleaning does, its objective and its transform. A cell is a verdict over all that was tried."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from report.columns.contract import Counted, Group, Said, Value, in_seeds
from report.costs import COLUMNS, amount, cost, costs, total
from report.headline import MEANINGS, asr_text
from report.matrix_runs import Place, Run, images_of, panels_of, plain, row_of, study_of
from report.matrix_words import search_words
from report.points import Panel, percent, spoken
from report.scores import BEST, FRESH, LOWEST, Mean, Number, Score
from report.seeds import at_chance_in, of_seeds
from report.submission import Submission
from report.verdict import judge, mean_point, where

OF_MACHINE = ("executor", "jobs", "processes", "slurm")  # what of a sweep decides nothing


class Cleaner:
    """The kind of columns."""

    name = "cleaner"
    columns: tuple[str, ...] = (
        "seeds_with", "best_top1", "low", "high", LOWEST.name, "start_top1", "start_asr", "twin_top1", "twin_asr",
    )  # fmt: skip

    def values(self, given: Submission, counted: Counted) -> Iterator[Value]:
        """Each cleaning run; one of a twin is none."""
        groups: dict[tuple[str, str], dict[int, list[Run]]] = {}
        for record in given.study.records:
            if record.run.stage == "clean" and record.run.control != "twin":
                run = counted[record.run.run, images_of(given.study, record)]
                seeds = groups.setdefault((row_of(run), record.run.cleaner or ""), {})
                seeds.setdefault(run.decided.seed, []).append(run)
        for (row, _), seeds in groups.items():
            column = plain(sorted({plain(does(run)) for runs in seeds.values() for run in runs}))
            for runs in seeds.values():
                search = _design(given) or plain(sorted(map(plain, _tried(runs))))
                for run in runs:
                    yield Value(Place(row, column, search), run, run.record.run.cleaner or "")

    def what(self, column: str) -> str:
        """Its objectives, and what is done to the weights before."""
        kinds = [json.loads(one) for one in json.loads(column)]
        return ", ".join(spoken(objective) + (f" after {transform}" if transform else "") for objective, transform in kinds)

    def tried(self, group: Group) -> str:
        """Rates, epochs, settings of several values."""
        return search_words(_tried(group.runs), [_tried(value.run for value in other) for other in group.beside])

    def cells(self, group: Group, what: str) -> Iterator[Said]:
        """The verdict on each attack, beside scratch where its row has that; scratch itself is a control and has none."""
        control = all(map(_fresh, group.runs))
        scratch = [] if control else [value.run for value in group.row if _fresh(value.run)]
        for at, panel in enumerate(panels_of(group.models, group.runs, what, scratch)):
            judged = judge([panel])
            seeds = [score for score in judged.scores if score.control is None]
            verdict, means = judged.verdicts[0], judged.means[seeds[0].group] if seeds else {}
            number = in_seeds(best) if (best := means.get(BEST.name)) else "not measured"
            yield Said(
                attack=at,
                head="Control: trained from scratch" if control else MEANINGS[verdict.status],
                number=number,
                sentence=f"From fresh weights the same training on the clean set reached {number}."
                if control
                else verdict.sentence,
                numbers=_numbers(panel, means),
                panel=panel,
                status="control" if control else verdict.status,
                small=[*_from(panel), _took(group.runs)],
                marks=_at_chance(seeds),
                heads=("seed", "start: top-1 at ASR", BEST.label, LOWEST.label),
                lines=[_seed(score) for score in seeds],
                facts=[(mean.metric.label, of_seeds(mean)) for mean in means.values()],
                costs={"cleaning": costs(study_of(group.runs)).sentence},
            )


def does(run: Run) -> tuple[str, str]:
    """What a cleaning run does: its objective, and what it does to the weights before."""
    clean = run.decided.clean
    assert clean is not None
    return clean.objective.kind, clean.transform.kind if clean.transform else ""


def _fresh(run: Run) -> bool:
    """Whether a cleaning run keeps nothing of the model."""
    return does(run)[1] == FRESH


def _design(given: Submission) -> str:
    """What decides the runs of a sweep that proposes others for each seed; empty of a grid, whose runs say it themselves."""
    spec = given.study.plan.spec
    sweep = spec.get("sweep")
    search = sweep.get("search") if isinstance(sweep, dict) else None
    if not isinstance(sweep, dict) or not isinstance(search, dict) or search.get("kind", "grid") == "grid":
        return ""
    own = {name: value for name, value in sweep.items() if name not in OF_MACHINE}
    return plain({"sweep": own, "clean": spec.get("clean")})


def _tried(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The different `clean` sections of the runs."""
    sections = (run.decided.whole["clean"] for run in runs)
    return list({plain(section): section for section in sections}.values())


def _took(runs: Sequence[Run]) -> str:
    """How many runs these are, and their times added up, in whichever study they were done."""
    wall, whole = COLUMNS[0], total([cost(run.record) for run in runs])
    scale, unit = wall.unit(whole)
    return f"{len(runs)} runs" + (f", {amount(whole.wall / scale)} {unit} added up" if whole.wall is not None else "")


def _from(panel: Panel) -> list[str]:
    """What the cleaned models were, without which what is left of their accuracy says little."""
    start = mean_point(panel.starts)
    return [f"from {percent(start.top1)} at ASR {percent(start.asr)}"] if start else []


def _at_chance(seeds: Sequence[Score]) -> list[str]:
    """How many seeds' best models are no longer models; the verdict does not count them, the mean does."""
    reached = sum(bool((number := score.numbers.get(BEST.name)) and number.at) for score in seeds)
    lost = at_chance_in(seeds, BEST)
    return [f"{lost} of the {reached} at chance"] if lost else []


def _seed(score: Score) -> list[str]:
    """The cells of one seed."""
    start = "not measured" if score.start is None else f"{percent(score.start.top1)} at {percent(score.start.asr)}"
    return ["" if score.seed is None else str(score.seed), start, *(_at(score.numbers.get(m.name)) for m in (BEST, LOWEST))]


def _at(number: Number | None) -> str:
    if number is None or number.at is None:
        return "none"
    return f"{percent(number.at.top1)} at ASR {asr_text(number.at)}, {where(number.at)}, {number.at.label.run}"


def _numbers(panel: Panel, means: dict[str, Mean]) -> dict[str, Any]:
    """By the kind's columns; rates are fractions in [0, 1], None where there is none."""
    best, low = means.get(BEST.name), means.get(LOWEST.name)
    start, twin = mean_point(panel.starts), mean_point(panel.twins)
    interval = best.interval if best else None
    return {
        "seeds_with": best.known if best else 0,
        "best_top1": best.value if best else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        LOWEST.name: low.value if low else None,
        "start_top1": start.top1 if start else None,
        "start_asr": start.asr if start else None,
        "twin_top1": twin.top1 if twin else None,
        "twin_asr": twin.asr if twin else None,
    }
