"""Which code this is: a digest of its source files, since a version number stays the same while a checkout changes."""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DECIDES = ("configs", "data", "engine", "measures", "objectives", "records")  # the folders whose code a run is made by
WHOLE = (*DECIDES, "report")
KINDS = (".py", ".json", ".j2", ".css")


def digest_now(rooms: Iterable[str] = WHOLE, root: Path = ROOT) -> str:
    """12 hex digits of the names and contents of these folders' source files, as they are on the disk at this moment."""
    digest = sha256()
    for room in rooms:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in KINDS:
                try:
                    content = path.read_bytes()
                except OSError:  # it is being replaced: the digest is another in any case
                    continue
                digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


@cache
def loaded_digest() -> str:
    """Of the code that makes runs, as it was when this process first asked."""
    return digest_now(DECIDES)
