"""The scores of the training pairs of a study's finished pre-trainings, where its spec asks for them."""

import sys
from collections.abc import Iterator
from pathlib import Path

from configs.plan import Run
from engine.detection.detect import Detection, detect, with_twin
from engine.distributed import collectives
from engine.distributed.world import World
from engine.study.scheduler import Scheduler
from engine.training.inputs import RunInputs
from records.detection import FOLDER, DetectionJson, scored_as
from records.ending import FailedJson


def score_pairs(scheduler: Scheduler, run: Run, inputs: RunInputs, world: World) -> None:
    """Scores the pairs of a finished run, if its spec asks for it and it is not done; all ranks call it."""
    asked, home = run.detect, scheduler.folder / run.folder
    if asked is None or collectives.on_rank_0(lambda: scored_as(home, asked.asked)):
        return
    result = detect(Detection(run, home, inputs.pairs, asked, world, inputs.workers))
    if not world.first:
        return
    (home / FailedJson.FILE).unlink(missing_ok=True)
    for poisoned, twin in _scored_with_twins(scheduler, run):
        told = with_twin(scheduler.folder / poisoned.folder, scheduler.folder / twin.folder, asked)
        result = told if told.run == run.folder else result
    for line in in_words(home, result):
        print(line, file=sys.stderr, flush=True)


def _scored_with_twins(scheduler: Scheduler, run: Run) -> Iterator[tuple[Run, Run]]:
    """(a pre-training, its twin), one of them this run, where both are scored as is asked."""
    for poisoned in [run] if run.stage == "pretrain" else scheduler.runs:
        both = (poisoned, poisoned.untouched)
        if (
            poisoned.stage == "pretrain"
            and run in both
            and all(one.detect is not None and scored_as(scheduler.folder / one.folder, one.detect.asked) for one in both)
        ):
            yield both


def in_words(home: Path, result: DetectionJson) -> list[str]:
    """What the scores say, a line for each detector."""
    pairs = f"{result.pairs:,} pairs, {result.poisoned:,} poisoned"
    lines = [f"{home / FOLDER}: {pairs}, scored by {', '.join(one.title for one in result.detectors)}"]
    for one in result.detectors:
        parts = [f"{one.flagged:,} flagged"]
        if one.poisoned_flagged is not None:
            parts.append(f"{one.poisoned_flagged:,} of them poisoned, AUROC {one.numbers['auroc']:.3f}")
        if one.twin:
            parts.append(f"{100 * one.twin['threshold']:.2f} % of the twin's at the same threshold")
        if "recall" in one.notes:
            parts.append(f"neighbours with recall {one.notes['recall']:.3f}")
        lines.append(f"  {one.title}: {', '.join(parts)}")
    return lines
