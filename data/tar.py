"""The members of one tar by its headers alone, as Python's `tarfile` reads them, for archives that nobody vouches for.

A damaged header ends `tarfile`'s reading without an exception, and a tar cut at a member's boundary looks whole to it, so
the walk is our own: every header's checksum must hold, no size may be negative or reach behind the file's end, what an
extended header says must be well formed, and the archive must end in zero blocks. Every header brings the walk at least
512 bytes on, so its time and memory are bounded by the size of the file.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data.refusal import UserError
from data.store import opened, stamp

BLOCK = 512
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd")  # gzip, bzip2, xz, zstd
LONGEST_NAME = 4096  # bytes, as of a path on Linux
LONGEST_HEADER = 1 << 20  # bytes of an extended header
PADDING = 1 << 26  # bytes of zeros behind the end; tar itself pads to 10 KiB
RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")  # the start of a pax record: its length, its keyword

REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
NO_BYTES = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
NO_FILE = (tarfile.DIRTYPE, b"D", b"V")  # folders, as GNU lists them too, and the archive's label

Member = tuple[str, int, int]  # name, offset of its bytes in the file, size in bytes


class Members(NamedTuple):
    """What one tar holds."""

    files: list[Member]
    others: list[str]  # names of links, devices and sparse files: their bytes do not stand behind their headers


class Damage(UserError):
    """An archive that is damaged or cut off; `members` lie whole before that, and `others` as in Members."""

    def __init__(self, words: str, found: Members) -> None:
        super().__init__(words)
        self.members, self.others = found


class _Said(NamedTuple):
    """What extended headers say of the next member."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


def walk(path: str) -> list[Member]:
    """Every regular member of one tar; Damage naming the byte where it is damaged or cut off, UserError if compressed."""
    return members_of(path).files


def members_of(path: str) -> Members:
    """Every member of one tar that is no folder; Damage or UserError as `walk`."""
    size, _ = stamp(path)
    found = Members([], [])
    with opened(path) as file:
        at = 0
        said: _Said | None = None
        while True:
            file.seek(at)
            header, data = file.read(BLOCK), at + BLOCK
            plain = _plain(header)
            if plain and said is None and data + plain[1] + BLOCK < size:  # as almost all members
                found.files.append((plain[0], data, plain[1]))
                at = data + -(-plain[1] // BLOCK) * BLOCK
                continue
            if not header.strip(b"\0") and len(header) == BLOCK:
                _end(path, at, found, said, file)
                return found
            name, length, kind = plain or _other(path, at, found, header)
            if kind in LONG or kind in PAX:
                said = _merged(said, _extended(path, data, found, file, (kind, length)), kind)
            elif said:
                name = name if said.name is None else said.name
                length = length if said.size is None else said.size
            if kind == tarfile.GNUTYPE_SPARSE:
                data = _behind_map(file, header, data)
            at = data + (0 if kind in NO_BYTES else -(-length // BLOCK) * BLOCK)
            if at > size:
                promise = f"promises {length} bytes for '{shown(name)[:200]}' but ends before them: it is cut off"
                raise _damage(path, data, found, promise)
            if kind in LONG or kind in PAX:
                continue
            if kind in REGULAR and not (said and said.sparse):
                found.files.append((name, data, length))
            elif kind not in NO_FILE:
                found.others.append(name)
            said = None


def shown(name: str) -> str:
    """The name as it can be written: bytes that are not UTF-8 as \\udcNN."""
    return name.encode("utf-8", "backslashreplace").decode()


def _plain(header: bytes) -> tuple[str, int, bytes] | None:
    """(name, size, kind) of a regular member with a short ASCII name, as almost all are; None for everything else."""
    if header[156:157] != b"0" or header[257:262] != b"ustar" or header[345:346] != b"\0":
        return None
    checksum, size = header[148:156].rstrip(b"\0 "), header[124:136].rstrip(b"\0 ")
    if not (checksum.isdigit() and size.isdigit()):
        return None
    try:
        name = header[: header.index(b"\0", 0, 101)].decode("ascii")
        right, length = int(checksum, 8), int(size, 8)
    except ValueError:
        return None
    # the sum of all bytes, its own eight read as blanks; Adler's low half is 1 + the sum, modulo 65521
    low = zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF
    return (name, length, b"0") if low == (1 + right - 8 * 32) % 65521 else None


def _other(path: str, at: int, found: Members, header: bytes) -> tuple[str, int, bytes]:
    """(name, size, kind) of any member."""
    if not at and header.startswith(PACKED):
        words = f"shard {path} is compressed, and pairs are read from the middle of a shard; unpack it first"
        raise UserError(words)
    if len(header) < BLOCK:
        raise _damage(path, at, found, "ends without the closing zero blocks: it is cut off")
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damage(path, at, found, f"has a bad header ({error})") from None
    if info.size < 0:
        raise _damage(path, at, found, f"has a bad header (a size of {info.size} bytes)")
    return info.name, info.size, info.type


def _extended(path: str, at: int, found: Members, file: BinaryIO, header: tuple[bytes, int]) -> _Said:
    """What the body of a GNU long name or a pax header at a place says."""
    kind, length = header
    if length > LONGEST_HEADER:
        raise _damage(path, at, found, f"has a name or an extended header of {length:,} bytes")
    file.seek(at)
    body = file.read(length)
    try:
        if kind in LONG:
            name = body.partition(b"\0")[0]
            said = _Said(_name(name) if kind == tarfile.GNUTYPE_LONGNAME else None)
        else:
            said = _of_records(body)
    except ValueError as error:
        raise _damage(path, at, found, f"has a damaged name or extended header ({error})") from None
    if kind == tarfile.XGLTYPE and said != _Said():
        raise _damage(path, at, found, "has a global header that gives all members one name or size")
    return said


def _of_records(body: bytes) -> _Said:
    """What pax records say of a member; ValueError if one is malformed."""
    name, size, sparse = None, None, False
    for keyword, value in _records(body):
        if keyword == b"GNU.sparse.name" or keyword == b"path" and not sparse:
            name = _name(value.rstrip(b"/"))
        elif keyword == b"size":
            if not re.fullmatch(rb"\d{1,20}", value):
                raise ValueError(f"a size of {value[:40]!r}")
            size = int(value)
        sparse = sparse or keyword.startswith(b"GNU.sparse.")
    return _Said(name, size, sparse)


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(keyword, value) of each pax record; ValueError where one is malformed."""
    at = 0
    while at < len(body) and body[at]:
        match = RECORD.match(body, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(body) or body[end - 1] != 0x0A:
            raise ValueError(f"record {body[at : at + 40]!r}")
        yield match[2], body[match.end() : end - 1]
        at = end


def _name(name: bytes) -> str:
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name):,} bytes")
    return name.decode("utf-8", "surrogateescape")


def _merged(first: _Said | None, then: _Said, kind: bytes) -> _Said | None:
    """What two headers say together: of the same thing, what the first says; None if neither is of the next member."""
    if first is None:
        return None if kind == tarfile.XGLTYPE else then
    size = then.size if first.size is None else first.size
    return _Said(then.name if first.name is None else first.name, size, first.sparse or then.sparse)


def _behind_map(file: BinaryIO, header: bytes, at: int) -> int:
    """Where a GNU sparse file's bytes begin: behind the blocks that go on with its map."""
    more = header[482]
    while more:
        file.seek(at)
        block = file.read(BLOCK)
        more, at = len(block) == BLOCK and block[504], at + BLOCK
    return at


def _end(path: str, at: int, found: Members, said: _Said | None, file: BinaryIO) -> None:
    """Damage unless the archive may end here, and nothing but zeros follows."""
    if said is not None:
        raise _damage(path, at, found, "ends behind the name of a member: it is cut off")
    for _ in range(PADDING >> 20):
        rest = file.read(1 << 20)
        if not rest:
            return
        if rest.strip(b"\0"):
            break
    raise _damage(path, at, found, "has data behind its closing zero blocks")


def _damage(path: str, at: int, found: Members, reason: str) -> Damage:
    where = f"(at byte {at:,}, after {len(found.files):,} whole members)"
    return Damage(f"shard {path} {reason} {where}; fetch or write it again, or take it out of the pattern", found)
