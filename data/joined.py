"""The joined index: the tables of all shards in files that every process maps, written whole and synced, believed only by
their digests.

FOLDER/keys.bin, ends.npy, hashes.npy, where.npy, sums.npy, counts.npy, meta.json
FOLDER/digests.json     size and digest of each, and a digest of that list: what is not as it says is made anew
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data.archive import Keys
from data.disk import flush, writing
from data.seeding import mixed, number_of
from data.table import Table

LIST = "digests.json"
KEYS, META = "keys.bin", "meta.json"
ARRAYS = ("ends", "hashes", "where", "sums", "counts")
PIECE = 1 << 26  # bytes that one thread digests at a time


def write(home: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Makes the folder whole or not at all: `fill` writes the arrays and the keys into a
    folder and returns the rest. DiskFull or UserError if it can't."""
    with writing(home.parent, "the index of shards"):
        home.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=home.parent, prefix=".joined-"))
        try:
            (fresh / META).write_text(json.dumps(fill(fresh)))
            files = {path.name: _digest(path) for path in sorted(fresh.iterdir())}
            (fresh / LIST).write_text(json.dumps({"files": files, "digest": _of_list(files)}))
            os.chmod(fresh, 0o755)
            for path in (*fresh.iterdir(), fresh):
                flush(path)
            try:
                fresh.rename(home)
            except OSError:  # another study joined the same shards in the meantime
                if fault(home):
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        flush(home.parent)


def set_aside(home: Path) -> None:
    """Removes a folder that is not what was written; who has mapped its files keeps what it mapped."""
    old = home.with_name(f".{home.name}-{os.getpid()}")
    with suppress(FileNotFoundError), writing(home.parent, "the index of shards"):
        home.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def fault(home: Path) -> str:
    """What is wrong with the folder; empty if each file has the size and the digest that were written."""
    try:
        listed = json.loads((home / LIST).read_bytes())
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in listed["files"].items()}
        if listed["digest"] != _of_list(files) or not {KEYS, META, *(f"{name}.npy" for name in ARRAYS)} <= files.keys():
            return f"{LIST} is not what was written"
        return next(
            (f"{name} is not what was written" for name, entry in files.items() if _digest(home / name) != entry), ""
        )
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{LIST} can't be read"


def mapped(home: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """(the arrays by name and the bytes of the keys under "keys", the rest)."""
    arrays = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    size = (home / KEYS).stat().st_size
    arrays["keys"] = np.memmap(home / KEYS, np.uint8, "r") if size else np.zeros(0, np.uint8)
    return arrays, json.loads((home / META).read_bytes())


def _digest(path: Path) -> tuple[int, str]:
    """(bytes, hex digest of the digests of its pieces, which several threads make)."""
    size = path.stat().st_size

    def piece(at: int) -> bytes:
        with path.open("rb") as file:
            file.seek(at)
            return blake2b(file.read(PIECE), digest_size=16).digest()

    with ThreadPoolExecutor(4) as pool:
        whole = b"".join(pool.map(piece, range(0, size, PIECE)))
    return size, blake2b(whole, digest_size=16).hexdigest()


def _of_list(files: Mapping[str, tuple[int, str]]) -> str:
    return blake2b(json.dumps({name: list(entry) for name, entry in files.items()}).encode(), digest_size=16).hexdigest()


def join(shards: list[tuple[str, str]], tables: list[Table], caption: str, fresh: Path) -> dict[str, Any]:
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
    arrays = {"ends": ends, "hashes": hashes[alive], "where": where, "sums": content, "counts": counts}
    for part, array in arrays.items():
        np.save(fresh / f"{part}.npy", array)
    names = list(dict.fromkeys(name for name, _ in shards))
    return {
        "paths": [path for _, path in shards],
        "bad": bad,
        "lost": [(path, *loss) for (_, path), loss in zip(shards, missing(tables), strict=True) if loss],
        "digest": f"{digest.hexdigest()}-{blake2b(content.tobytes(), digest_size=8).hexdigest()}",
        "sources": [names.index(name) for name, _ in shards],
    }


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
