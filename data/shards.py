"""Which samples the tar shards hold and where: one header walk a shard, kept beside it, never unpickled.

Reads the layout of webdataset and img2dataset: members of a sample share the name up to its first dot; the ending says
what they are.

    PATH.tar -> walk -> Table (data/table.py; kept as PATH.tar.index.npz, or in the cache where the folder is read-only)
    all tables -> Index: files in the cache that every process maps into its memory (data/joined.py), so that millions of
    pairs cost little to open and are held once a machine
"""

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data import joined
from data.archive import Keys
from data.refusal import UserError
from data.seeding import mixed, number_of
from data.store import expand, stamp
from data.table import Table, read_table

FORMAT = 6  # raised when joined files change
THREADS = 8  # shards walked at a time by one process: waiting for a disk is most of it


@dataclass(frozen=True)
class Index:
    """The samples of some shards in their stored order, N of them."""

    paths: tuple[str, ...]
    counts: np.ndarray  # int64 [S], samples of each shard
    keys: Keys
    hashes: np.ndarray  # uint64 [N], of the keys
    where: np.ndarray  # int64 [N, 4]: offset and size of the picture, offset and size of the caption
    bad: tuple[tuple[str, str, str], ...]  # (shard path, key, cause) of what can't be a sample
    lost: tuple[tuple[str, int, str], ...]  # (shard path, pairs that should be there and are not, why)
    digest: str  # hex; of the keys and sizes, then of the bytes, of the samples in their order
    sources: tuple[int, ...]  # [S], which of the patterns names each shard

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [S]: where each shard's samples end."""
        return np.cumsum(self.counts)

    def shard(self, sample: int) -> int:
        """The shard of a sample, as its place in `paths`."""
        return int(np.searchsorted(self.ends, sample, side="right"))

    def path(self, sample: int) -> str:
        """The path of a sample's shard."""
        return self.paths[self.shard(sample)]

    def places(self, samples: list[int]) -> list[tuple[str, list[int]]]:
        """(the shard's path, the row of `where`) of each sample."""
        shards = np.searchsorted(self.ends, samples, side="right").tolist()
        rows: list[list[int]] = self.where[samples].tolist()
        return [(self.paths[shard], row) for shard, row in zip(shards, rows, strict=True)]


def read_index(  # noqa: PLR0913  (all but two have defaults and are given by name)
    patterns: str | dict[str, str],
    cache: Path,
    share: tuple[int, int] = (0, 1),
    meet: Callable[[UserError | None], UserError | None] = lambda refusal: refusal,
    schemes: Sequence[str] = (),
    caption: str = "txt",
    progress: Callable[[int, int], None] = lambda done, total: None,
    beside: bool = True,
) -> Index:
    """The index of all shards that the patterns name; several of them, by name, put that name before their keys.

    `share` = (rank, ranks): each rank walks its part of the shards that have no table yet, then the first joins all
    tables into files of the cache, which the others map. Before and after they `meet`: each gives what it refuses, or None,
    and all get the first refusal, so that all refuse with the same words. `caption` is "txt", or
    "json.FIELD" for a field of the .json member; `beside` whether tables may be kept beside the shards.
    """
    named = {"": patterns} if isinstance(patterns, str) else patterns
    shards = [(name, path) for name, pattern in named.items() for path in expand(pattern, schemes)]
    stamps = [(name, path, *stamp(path)) for name, path in shards]
    identity = json.dumps([FORMAT, caption, stamps])
    home = cache / f"joined-{blake2b(identity.encode(), digest_size=12).hexdigest()}"
    refusal: UserError | None = None
    try:
        if share[0] == 0 and home.exists() and (fault := joined.fault(home)):
            print(f"index {home}: {fault}; made anew", file=sys.stderr, flush=True)
            joined.set_aside(home)
        if not home.exists():
            _tables([path for _, path in shards[share[0] :: share[1]]], cache, progress, beside)
    except UserError as error:
        refusal = error
    refusal = meet(refusal)
    if refusal is None and not share[0] and not home.exists():
        try:
            tables = _tables([path for _, path in shards], cache, beside=beside)
            joined.write(home, lambda fresh: _join(shards, tables, caption, fresh))
        except UserError as error:
            refusal = error
    refusal = meet(refusal)
    if refusal is not None:
        raise refusal
    if not home.exists():  # a folder that not all ranks share
        raise UserError(f"the index {home} is missing; start again", alone=True)
    return _mapped(home)


def _tables(
    paths: list[str], cache: Path, progress: Callable[[int, int], None] = lambda done, total: None, beside: bool = True
) -> list[Table]:
    with ThreadPoolExecutor(THREADS) as pool:
        out = []
        for table in pool.map(lambda path: read_table(path, cache, beside), paths):
            out.append(table)
            progress(len(out), len(paths))
        return out


def _join(shards: list[tuple[str, str]], tables: list[Table], caption: str, fresh: Path) -> dict[str, Any]:
    """Writes the arrays and the keys of the joined index into a folder; the rest of it."""
    starts = np.cumsum([0, *(len(table.keys) for table in tables)])

    def key(i: int) -> str:
        at = int(np.searchsorted(starts, i, side="right")) - 1
        return _prefixed(shards[at][0], tables[at].keys[i - int(starts[at])])

    def entry(i: int, cause: str) -> tuple[str, str, str]:
        return shards[int(np.searchsorted(starts, i, side="right")) - 1][1], key(i), cause

    place = 2 if caption == "txt" else 4
    bad = [
        (path, _prefixed(name, bad_key), cause)
        for (name, path), table in zip(shards, tables, strict=True)
        for bad_key, cause in table.bad
    ]
    alive = np.concatenate([table.places[:, place] >= 0 for table in tables])
    bad += [entry(int(i), "no_caption") for i in np.flatnonzero(~alive)]
    hashes = np.concatenate([_with_name(name, table.hashes) for (name, _), table in zip(shards, tables, strict=True)])
    doubles = _doubles(hashes, alive, key)
    alive[doubles] = False
    bad += [entry(i, "duplicate_key") for i in doubles]
    places = np.concatenate([table.places for table in tables])[alive]
    where = places[:, [0, 1, place, place + 1]]
    parts = [alive[low:high] for low, high in zip(starts, starts[1:], strict=False)]
    ends, digest = _write_keys(fresh / "keys.bin", [name for name, _ in shards], tables, parts)
    digest.update(where[:, (1, 3)].tobytes() + ends.tobytes())
    content = np.concatenate([table.sums for table in tables])[alive][:, [0, place // 2]]
    counts = np.array([int(part.sum()) for part in parts])
    for part, array in (("ends", ends), ("hashes", hashes[alive]), ("where", where), ("counts", counts)):
        np.save(fresh / f"{part}.npy", array)
    names = list(dict.fromkeys(name for name, _ in shards))
    return {
        "paths": [path for _, path in shards],
        "bad": bad,
        "lost": [(path, *loss) for (_, path), loss in zip(shards, missing(tables), strict=True) if loss],
        "digest": f"{digest.hexdigest()}-{blake2b(content.tobytes(), digest_size=8).hexdigest()}",
        "sources": [names.index(name) for name, _ in shards],
    }


def same_pairs(one: str, other: str) -> bool:
    """Whether two indices of these digests hold the same pairs; a digest of before November 2026 tells their names and
    sizes alone."""
    layouts, contents = zip(*(digest.partition("-")[::2] for digest in (one, other)), strict=True)
    return len(set(layouts)) == 1 and len(set(filter(None, contents))) < 2


def missing(tables: Sequence[Table]) -> list[tuple[int, str] | None]:
    """For each shard (pairs that should be there and are not, why), or None. What should be there is what img2dataset says
    was written; without its word a damaged shard is taken for as large as the median of the whole ones."""
    whole = [len(table.keys) + len(table.bad) for table in tables if not table.damage]
    usual = int(np.median(whole)) if whole else 0
    out: list[tuple[int, str] | None] = []
    for table in tables:
        have = len(table.keys) + len(table.bad)
        if table.promised > have:
            why = table.damage or f"img2dataset wrote {table.promised:,} pairs, {have:,} are there"
            out.append((table.promised - have, why))
        else:
            out.append((max(1, usual - have), table.damage) if table.damage else None)
    return out


def _write_keys(path: Path, names: list[str], tables: list[Table], alive: list[np.ndarray]) -> tuple[np.ndarray, Any]:
    """(where each key ends, int64 [N + 1]; a hash of all keys)."""
    hasher = blake2b(digest_size=16)
    ends, total = [np.zeros(1, np.int64)], 0
    with path.open("wb") as file:
        for name, table, here in zip(names, tables, alive, strict=True):
            whole = here.all() and not name
            keys = table.keys if whole else Keys.of(_prefixed(name, table.keys[i]) for i in np.flatnonzero(here))
            file.write(keys.body.tobytes())
            hasher.update(keys.body.tobytes())
            ends.append(keys.ends[1:] + total)
            total += int(keys.ends[-1])
    return np.concatenate(ends), hasher


def _mapped(home: Path) -> Index:
    arrays, meta = joined.mapped(home)
    return Index(
        tuple(meta["paths"]), np.array(arrays["counts"]), Keys(arrays["keys"], arrays["ends"]), arrays["hashes"],
        arrays["where"], tuple(tuple(entry) for entry in meta["bad"]), tuple(tuple(entry) for entry in meta["lost"]),
        meta["digest"], tuple(meta["sources"]),
    )  # fmt: skip


def _prefixed(name: str, key: str) -> str:
    return f"{name}:{key}" if name else key


def _with_name(name: str, hashes: np.ndarray) -> np.ndarray:
    return mixed(hashes, int(number_of([name])[0])) if name else hashes


def _doubles(hashes: np.ndarray, alive: np.ndarray, key: Callable[[int], str]) -> list[int]:
    """Places of samples whose key an earlier sample has."""
    order = np.argsort(hashes, kind="stable")
    order = order[alive[order]]
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]) + 1
    out: list[int] = []
    for at in same:
        first = at - 1
        while first > 0 and hashes[order[first - 1]] == hashes[order[at]]:
            first -= 1
        if key(int(order[at])) in {key(int(i)) for i in order[first:at]}:
            out.append(int(order[at]))
    return sorted(out)
