"""The folder of a made world: written whole or not at all, its evaluation sets laid out as CLIP_benchmark has them."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.disk import writing
from data.refusal import UserError


@contextmanager
def whole(folder: Path, what: str) -> Iterator[Path]:
    """A folder to write the world into, which takes its place at the end and is removed where that is not reached; UserError
    if the disk does not take it."""
    fresh = folder.parent / f".{folder.name}.partial"
    with writing(folder.parent, what):
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            yield fresh
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def another(folder: Path) -> UserError:
    """That something else is in the place of the world that is asked for."""
    return UserError(f"{folder} is there and not this world (see its world.json); delete it or name another folder")


def write_sets(fresh: Path, classes: Sequence[str], templates: Sequence[str], shards: Mapping[str, int]) -> None:
    """The lists beside the shards of each evaluation set, so many by its name; of `eval` also its classes."""
    (fresh / "eval/classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    for name, number in shards.items():
        (fresh / name / "zeroshot_classification_templates.txt").write_text("".join(f"{text}\n" for text in templates))
        (fresh / name / "test/nshards.txt").write_text(f"{number}\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line of JSON for each row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
