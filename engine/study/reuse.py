"""Runs that another study has finished: the same fingerprint is the same result, so they are taken over, not done again.

Looked for in the folders beside the study's own. Weights are linked where the file system can, since nothing writes into
them; all other files are copied, since a run may be measured again. finished.json says which study did the run.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from configs.plan import Run
from engine.training.elsewhere import finished_elsewhere
from records.ending import FinishedJson, TakenOver, verify_run
from records.json_file import Damaged
from records.rows import FILE

KEPT = (
    "spec.json",
    "card.json",
    "metrics.jsonl",
    "poison.json",
    "poison.png",
    "answers.png",
    "skipped.jsonl",
    "bad_batches.jsonl",
    "perturbation.json",
)
WEIGHTS = ("weights.safetensors", "optimizer.safetensors", "losses.f32")


def reuse_finished_runs(
    runs: Iterable[Run], folder: Path, digest_of: Callable[[Run], str | None] = lambda run: None
) -> list[tuple[Run, Path]]:
    """Takes over into the study's folder what others have finished, each run whole or not at all; (run, from where). One
    that is damaged there is named and left, and so is one of other pairs than those that `digest_of` a run says are there
    now (None: not known), or in another precision than is asked for by name."""
    taken = []
    for run in runs:
        home = folder / run.folder
        if home.exists():
            continue
        for source, why in finished_elsewhere(run, home, digest_of(run)):
            try:
                if why is None:
                    verify_run(source)
            except Damaged as damage:
                why = damage.fault
            if why is not None:
                print(f"{why}; not taken over", file=sys.stderr, flush=True)
                continue
            _take_over(source, home)
            taken.append((run, source))
            break
    return taken


def _take_over(source: Path, home: Path) -> None:
    staged = home.with_name(f".{home.name}.reused-{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in WEIGHTS:
        if (source / name).is_file():
            try:
                os.link(source / name, staged / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source / name, staged / name)
    end = FinishedJson.read(source)
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, staged / name)
    if end is not None:
        os.truncate(staged / FILE, end.journal)  # a launch that was killed when it measured again may have left more
        _marked(end, source.parent.name).write(staged)
    try:
        staged.rename(home)
    except OSError:  # another launch took it over, or began it
        shutil.rmtree(staged)


def _marked(end: FinishedJson, study: str) -> FinishedJson:
    """The end of a run that is taken over from a study's folder, with the study that did the run: this one, or the one from
    which it was taken over itself."""
    done_in = end.taken_over.study if end.taken_over else os.fsencode(study).decode(errors="replace")
    mark = TakenOver(study=done_in, seconds=end.seconds, joules=end.joules)
    return end.model_copy(update={"taken_over": mark})
