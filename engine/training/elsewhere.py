"""Finished runs of the same fingerprint in the studies beside, and whether each is what would be made now."""

from collections.abc import Iterator
from pathlib import Path

from configs.named_files import changed
from configs.plan import Run
from data.shards import same_pairs
from records.card import Card
from records.folder import finished
from records.json_file import Damaged
from records.spec_json import read_decides


def finished_elsewhere(run: Run, home: Path, digest: str | None) -> Iterator[tuple[Path, str | None]]:
    """(Its folder, in words why it is not what would be made now, None if it is) of each such run in the studies beside that
    of the run's folder. `digest` is of the pairs that are there now, None if that is not known."""
    for folder in sorted(home.parent.parent.glob(f"*/{home.name}")):
        if folder == home or not finished(folder):
            continue
        try:
            if read_decides(folder) == run.decides:
                card = Card.read_whole(folder)
                why = None if card is None else _otherwise(card, run, digest)
                yield folder, None if why is None else f"{folder} was made {why}"
        except Damaged as damage:
            yield folder, damage.fault


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
