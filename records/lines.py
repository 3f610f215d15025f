"""Files of JSON lines of ours: each line ends with a running digest, of itself and of the digest of the line before.

    {"kind": "step", "epoch": 1, "step": 10, "loss": 2.5, "digest": "0123456789ab"}

So a line that is not as it was written is known by itself, one that is missing or there twice by the line after it. Lines of
before there were digests are read, unverified, as long as none with a digest stands before them.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

DIGEST = "digest"
DIGITS = 12
_SEALED = re.compile(rb'(.*), "%b": "([0-9a-f]{%d})"\}' % (DIGEST.encode(), DIGITS))


class Lines(NamedTuple):
    """A file of JSON lines: (number from 1, JSON object without its digest) of each line that is as it was written, the
    numbers of those that are not, and the last digest, after which the file goes on."""

    whole: list[tuple[int, bytes]]
    damaged: list[int]
    last: str


def seal(text: str, before: str) -> tuple[str, str]:
    """(A line of a JSON object, which is not empty, with its digest after that of the line before; that digest)."""
    digest = digest_of_line(text.encode(), before)
    return f'{text[:-1]}, "{DIGEST}": "{digest}"}}\n', digest


def digest_of_line(text: bytes, before: str) -> str:
    """The digest of an object without its own, after that of the line before."""
    return sha256(before.encode() + text).hexdigest()[:DIGITS]


def read_lines(path: Path, length: int | None = None, least: int = 0) -> Lines:
    """The lines in the first `length` bytes of a file, or in all of it; none if there is no file. A last line that a kill
    has cut short is left out, or damaged where a length is given: so much was on the disk, as at `least` was."""
    try:
        body = path.read_bytes() if path.exists() else b""
    except OSError:
        return Lines([], [1], "")
    *lines, rest = body[:length].split(b"\n")
    whole, damaged, last = [], list[int](), ""
    for number, (text, before, digest) in enumerate(_parted(lines), 1):
        if digest is None:
            if before:
                damaged.append(number)
            elif text.strip():
                whole.append((number, text))
            continue
        if digest == digest_of_line(text, before):
            whole.append((number, text))
        else:
            damaged.append(number)
        last = digest
    cut = least and body[least - 1 : least] != b"\n"
    if cut or length is not None and (rest or len(body) < length):
        damaged.append(len(lines) + 1)
    return Lines(whole, damaged, last)


def without_digests(body: bytes) -> bytes | None:
    """A whole file without its digests but the last, from which `with_digests` makes it again; None unless every line is as
    it was written, with a digest."""
    *lines, rest = body.split(b"\n")
    texts, last = list[bytes](), ""
    for line in lines:
        text, digest = parted(line)
        if digest is None or digest != digest_of_line(text, last):
            return None
        texts.append(text)
        last = digest
    return b"\n".join([*texts[:-1], lines[-1], b""]) if lines and not rest else None


def with_digests(body: bytes) -> bytes:
    """The file of which `without_digests` made these lines; ValueError if it can't have made them."""
    *texts, last, rest = (b"", *body.split(b"\n"))
    lines, before = list[str](), ""
    for text in texts[1:]:
        line, before = seal(text.decode(), before)
        lines.append(line)
    whole = "".join(lines).encode() + last + b"\n"
    if rest or without_digests(whole) != body:
        raise ValueError("its last digest is not that of its lines")
    return whole


def first_unsealed(body: bytes) -> int | None:
    """The number, from 1, of the first line that ends without a digest; None if there is none."""
    return next((at for at, line in enumerate(body.splitlines(), 1) if not _SEALED.fullmatch(line)), None)


def _parted(lines: list[bytes]) -> Iterator[tuple[bytes, str, str | None]]:
    """(Its object without its digest, the digest before it, its digest if it has one) of each line."""
    before = ""
    for line in lines:
        text, digest = parted(line)
        yield text, before, digest
        before = before if digest is None else digest


def parted(line: bytes) -> tuple[bytes, str | None]:
    """(The object of a line without its digest, its digest if it has one)."""
    match = _SEALED.fullmatch(line)
    return (line, None) if match is None else (match[1] + b"}", match[2].decode())
