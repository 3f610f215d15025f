"""Poisoned copies of shards for other tools: what the loader shows on the fly, stored.

    one shard in -> members copied as they are, but those of poisoned pairs: KEY.png (lossless) as the loader gives it, the
    planned caption in KEY.txt and KEY.json -> hidden file -> fsync -> rename -> NAME_stats.json last

A shard is done when its statistics say so for this plan and these bytes; so a killed copy goes on where it stood.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from data.archive import IMAGES, LARGEST, Damage, split_name, walk
from data.attack import Attack, Fits, unbounded
from data.decode import DecodeError, DecodeMode, caption
from data.pipeline import attacked
from data.poison_plan import Entry, PoisonPlan
from data.refusal import UserError
from data.shards import Index
from data.store import Body, Range, Reader, Shortened, opened, stamp

Format = Literal["png", "jpeg"]
PIECE = 1 << 20  # bytes that are compared at once
QUALITY = 95  # of JPEG


class Change(NamedTuple):
    """One poisoned pair of a shard: its key there, its entry in the plan, and the pictures that it shows: one, or two of
    which the second stands beside the first."""

    key: str
    entry: Entry
    pictures: tuple[Range, ...]


@dataclass(frozen=True)
class Recipe:
    """What all shards of a copy have in common."""

    attack: Attack
    seed: int
    digest: str  # of the plan
    size: int  # side of the stored pictures of poisoned pairs
    mode: DecodeMode
    caption: str  # "txt" or "json.FIELD"
    format: Format
    fits: Fits = unbounded  # whether a caption reaches the model whole

    def plan(self, changes: tuple[Change, ...]) -> PoisonPlan:
        """The plan of one shard's changes, which are its samples in order."""
        entries = {i: change.entry for i, change in enumerate(changes)}
        return PoisonPlan(entries, {}, len(changes), self.seed, self.attack, self.fits)


class ShardCopy(NamedTuple):
    """One shard to copy."""

    shard: str
    target: Path
    recipe: Recipe
    changes: tuple[Change, ...]

    @property
    def stats(self) -> Path:
        """Where it is told that the copy is whole."""
        return self.target.with_name(f"{self.target.stem}_stats.json")


def shard_copies(index: Index, plan: PoisonPlan, recipe: Recipe, folder: Path, names: list[str]) -> list[ShardCopy]:
    """One for each shard; `names` are those of the sources, each of which gets a folder, or [""]."""
    changes: list[list[Change]] = [[] for _ in index.paths]
    for sample, entry in sorted(plan.entries.items()):
        neighbour, at = plan.neighbour(sample), index.shard(sample)
        shown = [plan.source(sample)] if neighbour is None else [plan.source(sample), neighbour]
        places: tuple[Range, ...] = tuple((index.path(i), *map(int, index.where[i, :2])) for i in shown)  # type: ignore[misc]
        name = names[index.sources[at]]
        changes[at].append(Change(entry.key.removeprefix(f"{name}:") if name else entry.key, entry, places))
    out = []
    for path, source, mine in zip(index.paths, index.sources, changes, strict=True):
        out.append(ShardCopy(path, folder / names[source] / Path(path).name, recipe, tuple(mine)))
    doubles = {task.target for task in out}
    if len(doubles) < len(out):
        raise UserError("two shards of data.pretrain bear the same file name; materialise them one folder at a time")
    return out


def done(task: ShardCopy) -> bool:
    """Whether the copy is there, whole, of this plan and of the shard as it is now."""
    try:
        stats = json.loads(task.stats.read_text())
        return bool(stats["made"] == _made(task)) and task.target.stat().st_size == stats["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _made(task: ShardCopy) -> list[Any]:
    recipe = task.recipe
    return [*stamp(task.shard), recipe.digest, recipe.size, recipe.mode, recipe.format]


def write(task: ShardCopy) -> None:
    """Copies one shard; UserError if the original can't be read."""
    task.target.parent.mkdir(parents=True, exist_ok=True)
    fresh = task.target.with_name(f".{task.target.name}.partial")
    counts = {"poisoned": 0, "bad": 0}
    keys: set[str] = set()
    with fresh.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, part in _changed(task, counts):
                info = tarfile.TarInfo(name)
                info.size, info.mode = part.left, 0o644
                tar.addfile(info, part)
                keys.add(split_name(name)[0])
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, task.target)
    facts = {"count": len(keys), "successes": len(keys), **counts, "bytes": task.target.stat().st_size, "made": _made(task)}
    stats = task.stats.with_name(f".{task.stats.name}")
    stats.write_text(json.dumps(facts))
    os.replace(stats, task.stats)


class Stretch:
    """Some bytes of an open file, from a place on, of which `left` are not read yet."""

    def __init__(self, path: str, file: BinaryIO, at: int, size: int) -> None:
        self.path, self.file, self.at, self.left = path, file, at, size

    def read(self, size: int = -1) -> bytes:
        """The next bytes, or all that are left; Shortened if the file ends before."""
        wanted = self.left if size < 0 else min(size, self.left)
        self.file.seek(self.at)
        body = self.file.read(wanted)
        if len(body) < wanted:
            raise Shortened(self.path)
        self.at, self.left = self.at + wanted, self.left - wanted
        return body


def members(path: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the regular members of a tar in order, as the index finds them: of a damaged one those before."""
    for name, part in _stretches(path):
        yield name, part.read()


def _stretches(path: str) -> Iterator[tuple[str, Stretch]]:
    """The same, whatever their size: each to be read before the next."""
    try:
        files = walk(path)
    except Damage as damage:
        files = damage.members
    with opened(path) as file:
        for name, offset, size in files:
            yield name, Stretch(path, file, offset, size)


def _stored(body: bytes) -> Stretch:
    return Stretch("", io.BytesIO(body), 0, len(body))


def _changed(task: ShardCopy, counts: dict[str, int]) -> Iterator[tuple[str, Stretch]]:
    """The members of the copy. A pair whose picture does not decode stays as it is and is counted as bad."""
    plan = task.recipe.plan(task.changes)
    reader = Reader()
    pictures = {
        change.key: _picture(task.recipe, plan, i, reader.read(list(change.pictures)))
        for i, change in enumerate(task.changes)
    }
    reader.close()
    places = {change.key: i for i, change in enumerate(task.changes)}
    counts["bad"] = sum(picture is None for picture in pictures.values())
    shown: set[str] = set()
    for name, part in _stretches(task.shard):
        key, ending = split_name(name)
        picture = pictures.get(key)
        if picture is None:
            yield name, part
        elif ending in IMAGES and key in shown:
            yield name, part  # a further picture of the pair, which no reader shows
        elif ending in IMAGES:
            counts["poisoned"] += 1
            shown.add(key)
            yield f"{name[: -len(ending)]}{'png' if task.recipe.format == 'png' else 'jpg'}", _stored(picture)
        elif ending in ("txt", "json") and part.left <= LARGEST:
            yield name, _stored(_words(task.recipe, plan, places[key], ending, part.read()))
        else:
            yield name, part


def _picture(recipe: Recipe, plan: PoisonPlan, at: int, bodies: Sequence[Body]) -> bytes | None:
    try:
        pixels = attacked(plan, at, bodies, recipe.size, recipe.mode)
    except DecodeError:
        return None
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if recipe.format == "png":
        image.save(file, "PNG", compress_level=3)
    else:
        image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def _words(recipe: Recipe, plan: PoisonPlan, at: int, ending: str, body: bytes) -> bytes:
    """The caption's member with the planned caption; a .json keeps its other fields."""
    field = recipe.caption.removeprefix("json.") if recipe.caption != "txt" else "caption"
    try:
        if ending == "txt":
            return plan.caption(caption(body), at).encode()
        if ending == "json":
            facts = json.loads(body)
            if isinstance(facts, dict) and isinstance(facts.get(field), str):
                return json.dumps({**facts, field: plan.caption(facts[field].strip(), at)}).encode()
    except (DecodeError, ValueError):
        pass  # stays as it is: no reader can use it either
    return body


class ShardDifference(NamedTuple):
    """What a copied shard holds against what it should hold."""

    pairs: int
    poisoned: int
    wrong: list[str]  # "key: what" of members that are not as planned


def compare(task: ShardCopy) -> ShardDifference:
    """Reads a copy back and compares each member with what the plan and the original ask for."""
    counts = {"poisoned": 0, "bad": 0}
    wrong: list[str] = []
    keys: set[str] = set()
    theirs = _stretches(str(task.target))
    for name, part in _changed(task, counts):
        member = next(theirs, ("nothing", _stored(b"")))
        keys.add(split_name(name)[0])
        if member[0] != name:
            return ShardDifference(len(keys), counts["poisoned"], [*wrong, f"{name}: {member[0]} stands in its place"])
        if not _same(member[1], part):
            wrong.append(f"{name}: other bytes than planned")
    wrong += [f"{name}: is not in the original" for name, _ in theirs]
    return ShardDifference(len(keys), counts["poisoned"], wrong)


def _same(one: Stretch, other: Stretch) -> bool:
    if one.left != other.left:
        return False
    while one.left:
        if one.read(PIECE) != other.read(PIECE):
            return False
    return True
