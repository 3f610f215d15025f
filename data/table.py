"""What one shard holds: walked once, its table kept beside it and believed only with its own digest."""

import json
import os
import sys
import tempfile
import zlib
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from data.archive import Keys, contents
from data.disk import writing
from data.patience import scheme
from data.store import opened, stamp

FORMAT = 6  # raised when tables change
WINDOW = 1 << 22  # bytes read at a time for their checksums
MARK = b"\nantidote table "  # before the digest of what stands before it
DIGEST = 16  # bytes
PARSING = Lock()  # numpy reads array headers with ast, which until Python 3.11.8 raises SystemError in two threads at once


class Table(NamedTuple):
    """What one shard holds: its Contents, and what is said of it."""

    keys: Keys
    hashes: np.ndarray
    places: np.ndarray
    bad: list[list[str]]
    damage: str
    promised: int  # pairs that img2dataset's PATH_stats.json says were written; -1 without one
    sums: np.ndarray  # uint32 [n, 3]: CRC-32 of picture, .txt and .json, 0 where there is none


def read_table(path: str, cache: Path, beside: bool = True, anew: bool = False) -> Table:
    """What one shard holds: from its table if that is no older than the shard, else, and if `anew`, by a walk whose table is
    kept."""
    size, mark = stamp(path)
    near = Path(f"{path}.index.npz")
    name = path if scheme(path) else os.path.abspath(path)
    far = cache / f"{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}.npz"
    now = [str(FORMAT), str(size), mark]
    # the far one first: it is there where the one beside the shard could not be written, or not be written anew
    for entry in () if anew else (far,) if scheme(path) else (far, near):
        if (kept := _kept(entry, now)) is not None:
            return kept
    found = contents(path)
    keys, hashes, places, bad, damage = found
    table = Table(keys, hashes, places, bad, damage, _promised(path), _sums(path, places))
    try:
        if scheme(path) or not beside:
            raise OSError
        keep(near, table, now)
        far.unlink(missing_ok=True)
    except OSError:  # a folder that is read-only, full, or none at all
        with writing(cache, "the index of shards"):
            cache.mkdir(parents=True, exist_ok=True)
            keep(far, table, now)
    return table


def holds(path: str, table: Table) -> bool:
    """Whether the shard's members are the bytes that its table was made of."""
    return bool((_sums(path, table.places) == table.sums).all())


def _kept(entry: Path, now: list[str]) -> Table | None:
    """The table in a file; None if there is none, or it is of another state of the shard or not what was written, which is
    said."""
    try:
        body = entry.read_bytes()
    except OSError:
        return None
    end = len(body) - len(MARK) - DIGEST
    if end < 0 or body[end:] != MARK + blake2b(body[:end], digest_size=DIGEST).digest():
        if body[-22:-18] != b"PK\5\6":  # as tables of before they had a digest end
            print(f"index {entry} is not what was written; its shard is walked again", file=sys.stderr, flush=True)
        return None
    with PARSING, np.load(BytesIO(body[:end]), allow_pickle=False) as kept:
        if kept["stamp"].tolist() != now:
            return None
        keys = Keys(kept["body"], kept["ends"])
        bad, damage, promised = json.loads(str(kept["rest"]))
        return Table(keys, kept["hashes"], kept["places"], bad, damage, promised, kept["sums"])


def keep(entry: Path, table: Table, now: list[str]) -> None:
    """Writes the table of a shard in this state (format, size, mark) whole or not at all; OSError if it can't."""
    content = {
        "stamp": np.array(now), "body": table.keys.body, "ends": table.keys.ends, "hashes": table.hashes,
        "places": table.places, "sums": table.sums, "rest": np.array(json.dumps(table[3:6])),
    }  # fmt: skip
    file = BytesIO()
    np.savez(file, **content)  # type: ignore[arg-type]
    body = file.getvalue()
    with tempfile.NamedTemporaryFile(dir=entry.parent, prefix=".index", suffix=".npz", delete=False) as staged:
        try:
            staged.write(body + MARK + blake2b(body, digest_size=DIGEST).digest())
            staged.flush()
            os.chmod(staged.name, 0o644)
            os.replace(staged.name, entry)
        except OSError:
            os.unlink(staged.name)
            raise


def _sums(path: str, places: np.ndarray) -> np.ndarray:
    """uint32 [n, 3] of members at int64 [n, 6]: their checksums, read from the shard's start to its end."""
    offsets, sizes = places[:, ::2].ravel(), places[:, 1::2].ravel()
    order = np.argsort(offsets, kind="stable")
    order = order[offsets[order] >= 0]
    out = np.zeros(len(offsets), np.uint32)
    begin, window = 0, memoryview(b"")
    with opened(path) as file:
        for at, offset, size in zip(order.tolist(), offsets[order].tolist(), sizes[order].tolist(), strict=True):
            total = 0
            for low in range(offset, offset + size, WINDOW):
                high = min(low + WINDOW, offset + size)
                if not begin <= low <= high <= begin + len(window):
                    file.seek(low)
                    begin, window = low, memoryview(file.read(WINDOW))
                total = zlib.crc32(window[low - begin : high - begin], total)
            out[at] = total
    return out.reshape(-1, 3)


def _promised(path: str) -> int:
    """How many pairs img2dataset says it has written to a shard; -1 if it says nothing."""
    if scheme(path):
        return -1
    try:
        said: Any = json.loads(Path(f"{path.removesuffix('.tar')}_stats.json").read_text())
        return int(said["successes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return -1
