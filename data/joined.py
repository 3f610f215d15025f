"""The joined index on disk: files that every process maps, written whole and synced, believed only by their digests.

FOLDER/keys.bin, ends.npy, hashes.npy, where.npy, counts.npy, meta.json
FOLDER/digests.json     size and digest of each, and a digest of that list: what is not as it says is made anew
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data.disk import flush, writing

LIST = "digests.json"
KEYS, META = "keys.bin", "meta.json"
ARRAYS = ("ends", "hashes", "where", "counts")
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
