"""Bytes of files on this machine or in any store that fsspec opens: named by patterns, read by ranges, with patience.

A path is local, or a URL of a scheme that the spec allows. No other scheme is opened, nothing is ever handed to a shell,
and chained URLs (`a::b`) are refused. A transient error of reading is tried again (data/patience.py) and then ends the run:
counted as a bad sample it would change the order of all that follow.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO, cast

from data.patience import scheme, with_retries
from data.pattern import names
from data.refusal import Missing, UserError

GLOBS = 10_000  # patterns with a * that the braces of one pattern may stand for
OPEN = 128  # files kept open
BLOCK = 1 << 23  # bytes that a walk reads at a time from a URL
TOGETHER = 1 << 26  # bytes of members that are read together, unless one has more
Range = tuple[str, int, int]  # path, offset, size in bytes
Body = bytes | memoryview
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


class NoShards(Missing):
    """Shards that a pattern names are not there."""


class InStore(NoShards):
    """Shards are in a store, which a dry run does not ask."""


def expand(pattern: str, schemes: Sequence[str] = ()) -> list[str]:
    """The sorted paths that a brace or glob pattern names; NoShards if one is missing or none matches, UserError if the
    scheme is not one of `schemes`."""
    paths: list[str] = []
    every = _names(pattern, schemes)
    if sum(map(glob.has_magic, every)) > GLOBS:
        raise UserError(f"shards '{pattern}' stand for more than {GLOBS:,} patterns with *; use fewer braces")
    for name in every:
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
    return any(map(scheme, _names(pattern, schemes)))


def _names(pattern: str, schemes: Sequence[str]) -> list[str]:
    """What the braces of a pattern stand for; UserError if one is not to be opened."""
    if "::" in pattern:
        _refuse(pattern, scheme(pattern), schemes)
    out = names(pattern)
    for name in out:
        if (which := scheme(name)) and (which not in schemes or "::" in name):
            _refuse(name, which, schemes)
    return out


def _refuse(name: str, which: str, schemes: Sequence[str]) -> None:
    known = f"a path or a URL of {', '.join(f'{allowed}://' for allowed in schemes)}" if schemes else "a path"
    fault = f"name the scheme '{which}'" if which else "hold '::'"
    raise UserError(f"shards '{name[:200]}' {fault}; expected {known} (data.schemes), no '::'")


def _globbed(name: str) -> list[str]:
    if not scheme(name):
        return sorted(glob.glob(name))
    paths: list[str] = with_retries(name, lambda: filesystem(name).glob(name))
    if not paths and (bucket := _bucket(name)):  # a glob keeps to itself why nothing matches
        with_retries(name, lambda: filesystem(name).ls(bucket))
    return sorted(f"{scheme(name)}://{path}" if "://" not in path else path for path in paths)


def _bucket(name: str) -> str:
    """The folder of a pattern in a bucket above its first magic part, or the bucket; empty for other URLs."""
    if scheme(name) not in ("s3", "gs", "gcs"):
        return ""
    parts = name.split("/")
    plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[: max(3, plain)])


def check_package(path: str) -> None:
    """UserError if this machine lacks the package that opens a URL; no store is asked."""
    import fsspec

    which = scheme(path)
    try:
        fsspec.get_filesystem_class(which)
    except ImportError as error:
        package = PACKAGES.get(which, "the package that it names")
        raise UserError(f"{path}: {error}; install it with: pip install {package}") from None
    except ValueError:
        known = ", ".join(sorted(PACKAGES))
        raise UserError(f"{path}: no package opens the scheme '{which}'; expected one of {known}, or a local path") from None


def filesystem(path: str) -> Any:
    """fsspec's file system for a URL; UserError naming the package that it lacks."""
    import fsspec

    check_package(path)
    return fsspec.filesystem(scheme(path))


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
        yield cast(BinaryIO, PatientFile(path, file))


class PatientFile:
    """A file whose reads are tried again after a transient error."""

    def __init__(self, path: str, file: Any) -> None:
        self.path, self.file, self.at = path, file, 0

    def seek(self, at: int) -> int:
        """Where the next read begins, in bytes from the start."""
        self.at = at
        return at

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all that are left; fewer at the end."""
        body: bytes = with_retries(self.path, lambda: self._read(size))
        self.at += len(body)
        return body

    def _read(self, size: int) -> bytes:
        if self.file.tell() != self.at:
            self.file.seek(self.at)
        return bytes(self.file.read(size))


class Shortened(UserError):
    """A shard ended before a range that was there when it was indexed."""

    def __init__(self, path: str) -> None:
        super().__init__(f"shard {path} became shorter while it was read; write it again and start anew", alone=True)


def in_parts(sizes: Iterable[int], most: int) -> Iterator[slice]:
    """Runs of neighbours whose sizes come to `most` at most, or of one alone."""
    begin = end = total = 0
    for size in sizes:
        if end > begin and total + size > most:
            yield slice(begin, end)
            begin, total = end, 0
        end, total = end + 1, total + size
    if end > begin:
        yield slice(begin, end)


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
                raise Shortened(path)
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
        out: list[bytes] = []
        for _, group in groupby(ranges, lambda place: scheme(place[0])):
            for place, body in zip(part := list(group), _together(part), strict=True):
                failed = isinstance(body, BaseException)
                out.append(with_retries(place[0], partial(_alone, place)) if failed else cast(bytes, body))
        return out


def _together(ranges: list[Range]) -> list[bytes | BaseException]:
    """The bytes of ranges of one store's files, fetched at the same time, or what stopped each."""
    paths, starts, sizes = (list(part) for part in zip(*ranges, strict=True))
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    return with_retries(paths[0], lambda: list(filesystem(paths[0]).cat_ranges(paths, starts, ends, on_error="return")))


def _alone(place: Range) -> bytes:
    path, start, size = place
    return bytes(filesystem(path).cat_file(path, start=start, end=start + size))
