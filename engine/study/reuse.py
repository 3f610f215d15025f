"""Runs that another study has finished: the same fingerprint is the same result, so they are taken over, not done again.

Looked for in the folders beside the study's own. Weights are linked where the file system can, since nothing writes into
them; all other files are copied, since a run may be measured again. finished.json says which study did the run.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from configs.named_files import changed
from configs.plan import Run
from data.shards import same_pairs
from records.card import Card
from records.ending import FinishedJson, TakenOver, verify_run
from records.folder import finished_beside
from records.json_file import Damaged
from records.rows import FILE
from records.spec_json import read_decides

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
        for source in finished_beside(home):
            try:
                is_same = read_decides(source) == run.decides
                if is_same:
                    verify_run(source)
                    card = Card.read_whole(source)
                    if card is not None and (why := _otherwise(card, run, digest_of(run))) is not None:
                        print(f"{source} was made {why}; not taken over", file=sys.stderr, flush=True)
                        is_same = False
            except Damaged as damage:
                print(f"{damage.fault}; not taken over", file=sys.stderr, flush=True)
                continue
            if is_same:
                _take_over(source, home)
                taken.append((run, source))
                break
    return taken


def _otherwise(card: Card, run: Run, digest: str | None) -> str | None:
    """How a run of the same fingerprint was made otherwise than it would be made now; None if it was not."""
    if (other := changed(card.files)) is not None:
        return f"when {other} held other bytes"
    if digest is not None and not same_pairs(card.data_digest, digest):
        return "of other pairs than its shards hold now"
    asked = run.spec.machine.precision
    if asked not in ("auto", card.precision):
        return f"in {card.precision}, and machine.precision is {asked}"
    return None


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
