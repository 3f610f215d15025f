"""Which samples the tar shards hold and where: one header walk a shard, kept in a cache, never unpickled.

Reads the layout of webdataset and img2dataset: members of a sample share the name up to its first dot; the ending says
what they are. A damaged header ends a shard without an exception in Python's `tarfile`, and a tar cut at a member's
boundary looks whole to it, so the walk is our own: every header's checksum must hold, and the archive must end in
zero blocks.
"""

import glob
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from data.refusal import Refusal

BLOCK = 512
IMAGES = ("jpg", "jpeg", "png", "webp")
Member = tuple[str, int, int]  # name, offset of its bytes in the file, size in bytes


@dataclass(frozen=True)
class Index:
    """The samples of some shards in their stored order, N of them; `where` is int64 [N, 4]: offset and size of the
    image, offset and size of the text; `bad` lists (shard path, key, cause) of what can't be a sample."""

    paths: tuple[str, ...]
    shard: np.ndarray  # int32 [N], position in `paths`
    keys: list[str]
    where: np.ndarray
    bad: tuple[tuple[str, str, str], ...]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def digest(self) -> str:
        """Hex digest of all keys and sizes: equal exactly if the same samples are there."""
        hasher = blake2b(self.where[:, (1, 3)].tobytes(), digest_size=16)
        hasher.update("\n".join(self.keys).encode())
        return hasher.hexdigest()


def expand(pattern: str) -> list[str]:
    """The sorted paths that a brace or glob pattern names; Refusal if one is missing or none matches."""
    if ":" in pattern.split("/")[0]:
        raise Refusal(f"shards '{pattern}' name a scheme; expected a path or pattern of local .tar files")
    paths: list[str] = []
    for name in braceexpand(pattern):
        paths.extend(sorted(glob.glob(name)) if glob.has_magic(name) else [name])
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        found = f"{len(missing)} of the {len(paths)} files it names are missing, first {missing[0]}" if missing else ""
        raise Refusal(f"shards '{pattern}' match no complete set of files ({found or 'nothing matches'}); check the path")
    return sorted(paths)


def walk(path: str) -> list[Member]:
    """Every regular member of one tar; Refusal naming the byte where it is damaged or cut off."""
    size = os.path.getsize(path)
    members: list[Member] = []
    with open(path, "rb") as file:
        at, long_name = 0, ""
        while True:
            file.seek(at)
            header = file.read(BLOCK)
            if len(header) < BLOCK:
                raise Refusal(_damage(path, at, members, "ends without the closing zero blocks: it is cut off"))
            if not header.strip(b"\0"):
                if file.read().strip(b"\0"):
                    raise Refusal(_damage(path, at, members, "has data behind its closing zero blocks"))
                return members
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                reason = "is compressed; unpack it first" if header[:2] == b"\x1f\x8b" else f"has a bad header ({error})"
                raise Refusal(_damage(path, at, members, reason)) from None
            data = at + BLOCK
            at = data + -(-info.size // BLOCK) * BLOCK
            if at > size:
                promise = f"promises {info.size} bytes for '{info.name}' but ends before them: it is cut off"
                raise Refusal(_damage(path, data, members, promise))
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                file.seek(data)
                long_name = _long_name(info.type, file.read(info.size)) or long_name
            elif info.isreg():
                members.append((long_name or info.name, data, info.size))
                long_name = ""


def _damage(path: str, at: int, members: list[Member], reason: str) -> str:
    return (
        f"shard {path} {reason} (at byte {at:,}, after {len(members):,} whole members); "
        "fetch or write it again, or take it out of the pattern"
    )


def _long_name(kind: bytes, body: bytes) -> str:
    """The name that a GNU long-name or a pax header gives the next member; empty if it gives none."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return body.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while body:
        length, _, rest = body.partition(b" ")
        record = rest[: int(length) - len(length) - 2]
        if record.startswith(b"path="):
            return record[5:].decode("utf-8", "surrogateescape")
        body = body[int(length) :]
    return ""


def split_name(name: str) -> tuple[str, str]:
    """(key, lower-case ending) of a member: the file name is cut at its first dot, as webdataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def read_index(
    pattern: str, cache: Path, share: tuple[int, int] = (0, 1), barrier: Callable[[], None] = lambda: None
) -> Index:
    """The index of all shards that the pattern names.

    `share` = (rank, ranks): each rank walks its part of the shards not yet in `cache`, meets the others at
    `barrier`, then reads all of them. An entry is found by path, size and time of change, so a stale one is not.
    """
    paths = expand(pattern)
    cache.mkdir(parents=True, exist_ok=True)
    refusal: Refusal | None = None
    try:
        for path in paths[share[0] :: share[1]]:
            _cached(path, cache)
    except Refusal as error:  # meet the others first: they read the same shard and refuse with the same words
        refusal = error
    barrier()
    if refusal is not None:
        raise refusal
    return _join(paths, [_cached(path, cache) for path in paths])


def _join(paths: list[str], tables: list[tuple[list[str], np.ndarray, list[list[str]]]]) -> Index:
    keys: list[str] = []
    shard: list[np.ndarray] = []
    where: list[np.ndarray] = []
    bad: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for i, (names, places, faults) in enumerate(tables):
        fresh = np.zeros(len(names), np.bool_)
        for n, name in enumerate(names):
            fresh[n] = name not in seen
            seen.add(name)
        bad.extend((paths[i], key, cause) for key, cause in faults)
        bad.extend((paths[i], name, "duplicate_key") for name, new in zip(names, fresh, strict=True) if not new)
        keys.extend(name for name, new in zip(names, fresh, strict=True) if new)
        where.append(places[fresh])
        shard.append(np.full(int(fresh.sum()), i, np.int32))
    return Index(tuple(paths), np.concatenate(shard), keys, np.concatenate(where), tuple(bad))


def _cached(path: str, cache: Path) -> tuple[list[str], np.ndarray, list[list[str]]]:
    """(keys, places int64 [n, 4], [key, cause] of the bad) of one shard, from the cache or by a walk."""
    stat = os.stat(path)
    name = blake2b(f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}".encode(), digest_size=16).hexdigest()
    entry = cache / f"{name}.npz"
    try:
        with np.load(entry, allow_pickle=False) as table:
            return json.loads(str(table["keys"])), table["where"], json.loads(str(table["bad"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # not there yet, or half-written by a killed process: walk
    keys, where, bad = _samples(walk(path))
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".npz", delete=False) as file:
        np.savez(file, keys=json.dumps(keys), where=where, bad=json.dumps(bad))
    os.replace(file.name, entry)
    return keys, where, bad


def _samples(members: Iterable[Member]) -> tuple[list[str], np.ndarray, list[list[str]]]:
    """Members grouped by key: those with an image and a text are samples, the others are bad."""
    image: dict[str, tuple[int, int]] = {}
    text: dict[str, tuple[int, int]] = {}
    order: dict[str, None] = {}
    for name, offset, size in members:
        key, ending = split_name(name)
        order.setdefault(key)
        if ending in IMAGES:
            image.setdefault(key, (offset, size))
        elif ending == "txt":
            text.setdefault(key, (offset, size))
    keys = [key for key in order if key in image and key in text]
    bad = [[key, "no_image" if key not in image else "no_caption"] for key in order if key not in image or key not in text]
    return keys, np.array([(*image[key], *text[key]) for key in keys], np.int64).reshape(-1, 4), bad
