"""Bytes of files on this machine or in any store that fsspec opens: named by patterns, read by ranges, with patience.

A path is local, or a URL of a scheme that the spec allows. No other scheme is opened, nothing is ever handed to a shell,
and chained URLs (`a::b`) are refused. A transient error of reading is tried again and then ends the run: counted as a bad
sample it would change the order of all that follow.
"""

import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

from braceexpand import braceexpand

from data.refusal import Missing, UserError

PATIENCE = (0.2, 1.0, 5.0)  # seconds between tries
OPEN = 128  # files kept open
BLOCK = 1 << 23  # bytes that a walk reads at a time from a URL
Range = tuple[str, int, int]  # path, offset, size in bytes
Body = bytes | memoryview
T = TypeVar("T")


class NoShards(Missing):
    """Shards that a pattern names are not there."""


def scheme(path: str) -> str:
    """Of a URL; empty for a local path."""
    head, colon, _ = path.partition(":")
    return head if colon and "/" not in head else ""


def expand(pattern: str, schemes: Sequence[str] = ()) -> list[str]:
    """The sorted paths that a brace or glob pattern names; NoShards if one is missing or none matches, UserError if the
    scheme is not one of `schemes`."""
    paths: list[str] = []
    for name in braceexpand(pattern):
        _allowed(name, schemes)
        if glob.has_magic(name):
            paths.extend(_globbed(name))
        else:
            paths.append(name)
    missing = [path for path in paths if not scheme(path) and not os.path.isfile(path)]
    if missing or not paths:
        words = f"{len(missing)} of the {len(paths)} files it names are missing, first {missing[0]}" if missing else ""
        raise NoShards(f"shards '{pattern}' match no complete set of files ({words or 'nothing matches'}); check the path")
    return sorted(paths)


def in_store(pattern: str, schemes: Sequence[str] = ()) -> bool:
    """Whether a pattern names files of a store, for which it is not asked; UserError as `expand`."""
    names = list(braceexpand(pattern))
    for name in names:
        _allowed(name, schemes)
    return any(map(scheme, names))


def _allowed(name: str, schemes: Sequence[str]) -> None:
    which = scheme(name)
    if which and (which not in schemes or "::" in name):
        known = f"a path or a URL of {', '.join(f'{allowed}://' for allowed in schemes)}" if schemes else "a path"
        raise UserError(f"shards '{name}' name the scheme '{which}'; expected {known} (data.schemes), no '::'")


def _globbed(name: str) -> list[str]:
    if not scheme(name):
        return sorted(glob.glob(name))
    paths: list[str] = with_retries(name, lambda: filesystem(name).glob(name))
    return sorted(f"{scheme(name)}://{path}" if "://" not in path else path for path in paths)


def filesystem(path: str) -> Any:
    """fsspec's file system for a URL; UserError naming the package that it lacks."""
    import fsspec

    try:
        return fsspec.filesystem(scheme(path))
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}; install it with: pip install 'antidote[{_extra(scheme(path))}]'") from None


def _extra(which: str) -> str:
    return {"s3": "s3", "gs": "gs", "gcs": "gs"}.get(which, "http")


def with_retries(path: str, action: Callable[[], T]) -> T:
    """What the action gives, tried again after a transient error; UserError if it does not end well, or can't."""
    for wait in (*PATIENCE, None):
        try:
            return action()
        except UserError:
            raise
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise UserError(f"{path}: {error.strerror or 'not found'}; check the path and its rights", alone=True) from None
        except Exception as error:  # every store has its own kinds
            if wait is None:
                raise UserError(
                    f"{path} can't be read: {type(error).__name__}: {error} ({len(PATIENCE) + 1} tries in "
                    f"{sum(PATIENCE):.0f} s); nothing is lost: start the same command again when the disk or store is well",
                    alone=True,
                ) from None
            time.sleep(wait)
    raise AssertionError


def stamp(path: str) -> tuple[int, str]:
    """(size in bytes, what changes when the file does: time of change, or the store's own mark)."""
    if not scheme(path):
        status = with_retries(path, lambda: os.stat(path))
        return status.st_size, str(status.st_mtime_ns)
    facts: dict[str, Any] = with_retries(path, lambda: filesystem(path).info(path))
    mark = next((str(facts[name]) for name in ("ETag", "etag", "mtime", "LastModified", "created") if facts.get(name)), "")
    return int(facts["size"] or 0), mark


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file, to be read from its start to its end."""
    if not scheme(path):
        file: Any = with_retries(path, lambda: open(path, "rb"))
    else:
        file = with_retries(path, lambda: filesystem(path).open(path, "rb", block_size=BLOCK, cache_type="readahead"))
    with file:
        yield cast(BinaryIO, file)


class Reader:
    """Reads ranges of files; keeps local ones open; picklable and safe to take across a fork."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.buffer = bytearray()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": {}, "buffer": bytearray()}

    def close(self) -> None:
        """Closes what is open."""
        for file in self.files.values():
            os.close(file)
        self.files.clear()

    def read(self, ranges: Sequence[Range]) -> list[Body]:
        """The bytes of each range, in order, valid until the next call; those of a URL are fetched at the same time.
        UserError if a file became shorter or can't be read."""
        total = sum([size for _, _, size in ranges])
        if len(self.buffer) < total:
            self.buffer = bytearray(total)  # kept: fresh memory costs several times the copy
        view, at, out = memoryview(self.buffer), 0, list[Body]()
        far = [place for place in ranges if place[0] not in self.files and scheme(place[0])]
        fetched = iter(self._fetched(far) if far else ())
        known = self.files.get
        for path, offset, size in ranges:
            if far and scheme(path):
                body: Body = next(fetched)
                read = len(body)
            else:
                body = view[at : at + size]
                at += size
                file = known(path)
                try:
                    read = os.preadv(file, (body,), offset) if file is not None else self._anew(path, offset, body)
                except OSError:
                    read = self._again(path, offset, body)
            if read != size:
                raise UserError(f"shard {path} became shorter while it was read; write it again and start anew", alone=True)
            out.append(body)
        return out

    def _again(self, path: str, offset: int, into: memoryview) -> int:
        """How many bytes were there, after an error: with the file opened anew, since a stale handle never recovers."""
        if path in self.files:
            os.close(self.files.pop(path))
        return with_retries(path, lambda: self._anew(path, offset, into))

    def _anew(self, path: str, offset: int, into: memoryview) -> int:
        if len(self.files) >= OPEN:
            os.close(self.files.pop(next(iter(self.files))))
        file = os.open(path, os.O_RDONLY)
        try:
            read = os.preadv(file, (into,), offset)
        except OSError:
            os.close(file)
            raise
        self.files[path] = file
        return read

    def _fetched(self, ranges: list[Range]) -> list[bytes]:
        paths, starts, sizes = (list(part) for part in zip(*ranges, strict=True))
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        first = paths[0]
        return with_retries(first, lambda: list(filesystem(first).cat_ranges(paths, starts, ends, on_error="raise")))
