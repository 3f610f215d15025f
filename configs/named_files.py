"""The files that a run's spec names and whose content decides its result: known by address in its fingerprint, by digest in
its card."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.augmentation.augment import Augment
from data.augmentation.eda import READ, wordnet_files
from data.refusal import UserError
from records.digests import changed_file, file_digest

FIELDS = ("captions", "file", "picture", "flags", "labels")  # of attacks, triggers and objectives


def named_files(decides: dict[str, Any], captions: Augment | None = None) -> dict[str, str]:
    """SHA-256 by address of the files that these values of a run name and that are there, and of WordNet's if `captions` are
    varied by its synonyms. Weights, stamps and what is left out are in the fingerprint by their own digests; shards and
    evaluation sets are the index's."""
    out = {}
    words = [] if captions is None else map(str, wordnet_files(captions))
    for address in sorted({*_addresses(decides), *words}):
        try:
            out[address] = file_digest(Path(address))
        except OSError:
            continue  # whoever reads it says so
    return out


def refuse_changed_file(run: Path, then: dict[str, str] | None) -> None:
    """UserError if a file that the spec of the run in a folder names, such as a trigger's, holds other bytes than `then`."""
    if (other := changed(then)) is not None:
        raise UserError(
            f"{run} was begun when {other} held other bytes; put them back, give the spec another name, or delete that "
            "folder"
        )


def changed(then: dict[str, str] | None) -> str | None:
    """The first file that holds other bytes than `then`, when it had these digests by address; None if there is none.
    WordNet that the machine has elsewhere now is compared where it is."""
    if (other := changed_file(then)) is not None:
        return other
    gone = {path.name: digest for path, digest in _of_wordnet(then or {}) if not path.exists()}
    found = wordnet_files(Augment(synonyms="wordnet")) if gone else []
    return next((str(path) for path in found if path.name in gone and file_digest(path) != gone[path.name]), None)


def _of_wordnet(files: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """The files of WordNet among some, with their digests."""
    return ((path, digest) for address, digest in files.items() if (path := Path(address)).name in READ)


def _addresses(value: Any, parents: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and key in FIELDS and "poison" not in parents:
                if Path(inner).is_file():
                    yield inner
            elif key not in ("data", "model"):
                yield from _addresses(inner, (*parents, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _addresses(inner, parents)
