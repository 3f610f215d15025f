"""The SHA-256 of files, of each file once a process for as long as it does not change."""

import hashlib
from pathlib import Path

_known: dict[tuple[int, int, int, int], str] = {}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hex; taken again when its size or time of change is another. Links to one file are one."""
    stat = path.stat()
    file = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if file not in _known:
        with path.open("rb") as content:
            _known[file] = hashlib.file_digest(content, "sha256").hexdigest()
    return _known[file]


def changed_file(then: dict[str, str] | None) -> str | None:
    """The first file that holds other bytes than `then`, when it had these digests by address; None if there is none, or
    nothing is known."""
    for address, digest in (then or {}).items():
        try:
            if file_digest(Path(address)) != digest:
                return address
        except OSError:
            continue  # whoever reads it says so
    return None


def forget() -> None:
    """Takes every digest again: for whoever changes files faster than the file system's clock ticks."""
    _known.clear()
