"""Labelled pictures that show a concept, to measure a natural trigger on: pairs whose caption names the concept's word and
one of a set's classes.

    FOLDER/classnames.txt  zeroshot_classification_templates.txt  test/nshards.txt  test/0.tar     CLIP_benchmark's layout
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.captions import stored_captions, word_of
from data.decode import DecodeError
from data.decode import whole as decoded
from data.labelled import Labelled
from data.refusal import UserError
from data.shards import Index
from data.store import Body, Range, Reader
from data.world_folder import whole


def showing(index: Index, field: str, word: str, classes: list[str]) -> Iterator[tuple[int, int]]:
    """(sample, class) of each pair whose caption names the word and exactly one class, by a name that is not the word."""
    shows, names = word_of(word), [word_of(name) for name in classes]
    for sample, caption in enumerate(stored_captions(index, np.arange(len(index)), field)):
        if caption is None or not shows.search(caption):
            continue
        named = [at for at, name in enumerate(names) if name.search(caption)]
        if len(named) == 1:
            yield sample, named[0]


def write_concept_set(folder: Path, index: Index, chosen: list[tuple[int, int]], like: Labelled) -> int:
    """Writes the chosen pictures with the classes and templates of a set; how many could be decoded and were written."""
    reader, written = Reader(), 0
    with whole(folder, "the concept's pictures") as fresh:
        (fresh / "test").mkdir(parents=True)
        with tarfile.open(fresh / "test/0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for sample, label in chosen:
                place: Range = (index.path(sample), *map(int, index.where[sample, :2]))  # type: ignore[assignment]
                (body,) = reader.read([place])
                index.verify(0, [sample], [body])
                if ending := _ending(body):
                    _add(tar, f"{written:06d}.{ending}", bytes(body))
                    _add(tar, f"{written:06d}.cls", str(label).encode())
                    written += 1
        if not written:
            raise UserError(f"none of {len(chosen):,} pictures that show the concept can be decoded; check the shards")
        (fresh / "test/nshards.txt").write_text("1\n")
        (fresh / "classnames.txt").write_text("".join(f"{name}\n" for name in like.classes))
        lines = "".join(f"{template}\n" for template in like.templates)
        (fresh / "zeroshot_classification_templates.txt").write_text(lines)
    reader.close()
    return written


def _ending(body: Body) -> str:
    """How a picture's name ends, by its first bytes; empty if it does not decode."""
    try:
        decoded(body)
    except DecodeError:
        return ""
    return {b"\x89PNG": "png", b"RIFF": "webp"}.get(bytes(body[:4]), "jpg")


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(body), 0o644
    tar.addfile(info, io.BytesIO(body))
