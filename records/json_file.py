"""JSON files of ours: each holds the SHA-256 of its own content, is written whole and synced, and verified when it is read.

Whatever else lies in its place (an empty or cut file, another kind of value, bytes that are no text, nesting or numbers
without bound, one flipped bit) is one error, `Damaged`. Files of before there were digests are read, unverified.
"""

import json
import os
import socket
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.refusal import UserError

DIGEST = "sha256"  # the member that holds it, last in the file
LARGEST_FILE = 1 << 28  # bytes
LARGEST_NUMBER = 40  # characters of a whole number
DEEPEST = 64  # levels of nesting


class Damaged(UserError):
    """A file of ours is not as it was written."""


def damaged(path: Path, why: str, remedy: str) -> Damaged:
    """The error that says so, and what to do."""
    return Damaged(f"{path} is damaged ({why}); {remedy}")


def digest_of(content: Any) -> str:
    """The SHA-256 of plain values, whatever the order of their keys, in hex."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_json(content: Any) -> bytes:
    """An object as JSON with its digest."""
    plain = json.loads(json.dumps(content))  # as it will be read: keys are text, tuples lists
    return (json.dumps({**plain, DIGEST: digest_of(plain)}, indent=1) + "\n").encode()


def parse(body: bytes) -> dict[str, Any]:
    """The object in a JSON text, verified where it holds a digest, which is left out; ValueError saying what is wrong."""
    try:
        value = json.loads(body.decode("utf-8"), parse_int=_whole_number)
        if not isinstance(value, dict):
            raise ValueError(f"it holds {'null' if value is None else type(value).__name__}, expected an object")
        _check_depth(value)
        digest = value.pop(DIGEST, None)
        if digest is not None and digest != digest_of(value):
            raise ValueError("its content is not that of its digest")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def has_digest(body: bytes) -> bool:
    """Whether the object in a JSON text of ours, which `parse` has read, holds a digest, and so was verified."""
    return DIGEST in json.loads(body)


def _whole_number(text: str) -> int:
    if len(text) > LARGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(text):,} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError("it is nested too deeply")


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file of ours; None if there is no such file. Damaged, with this remedy, if it is not whole."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise damaged(path, f"it is larger than {LARGEST_FILE:,} bytes", remedy)
        return parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise damaged(path, error.strerror or str(error), remedy) from None
    except Damaged:
        raise
    except ValueError as error:
        raise damaged(path, "it is no text" if isinstance(error, UnicodeDecodeError) else str(error), remedy) from None


def write_json(path: Path, content: Any) -> None:
    """Writes an object with its digest, whole or not at all, whoever else writes the same file; synced when it returns."""
    write_whole(path, to_json(content), synced=True)


def write_whole(path: Path, content: bytes, synced: bool = False) -> None:
    """Writes the file so that readers see the old or the new one, never a part."""
    staged = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        with staged.open("wb") as file:
            file.write(content)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    if synced:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Returns when the folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
