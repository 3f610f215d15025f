"""What one tar holds, found by its headers alone: nothing in it is ever run, unpickled or written.

A damaged header ends a shard without an exception in Python's `tarfile`, and a tar cut at a member's boundary looks whole
to it, so the walk is our own: every header's checksum must hold, and the archive must end in zero blocks. `_quick` does the
same for a plain tar on this machine with arrays; whatever it meets that is not plain, it leaves to `walk`.
"""

import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data.patience import scheme, with_retries
from data.refusal import UserError
from data.seeding import numbers
from data.store import opened, stamp

BLOCK = 512
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd")  # gzip, bzip2, xz, zstd
LARGEST = 1 << 30  # bytes of a member; beyond it nobody means a picture or a caption
TIME = b" mtime="  # behind the length of the record, two digits
WINDOW = 1 << 18  # bytes read at a time: at once for the headers of small members
NAME = 100  # bytes of a name in a header
IMAGES = ("jpg", "jpeg", "png", "webp")
PLACES = {**dict.fromkeys(IMAGES, 0), "txt": 2, "json": 4}  # where a member's offset and size stand in a row
Member = tuple[str, int, int]  # name, offset of its bytes in the file, size in bytes


class Keys(Sequence[str]):
    """The names of N samples, held as one run of bytes."""

    def __init__(self, body: np.ndarray, ends: np.ndarray) -> None:
        self.body, self.ends = body, ends  # uint8 [all bytes], int64 [N + 1]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Keys":
        """From strings."""
        parts = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def parts(self) -> list[bytes]:
        """The names as bytes."""
        body, ends = self.body.tobytes(), self.ends.tolist()
        return [body[a:b] for a, b in zip(ends, ends[1:], strict=False)]

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = int(at)
        return self.body[self.ends[at] : self.ends[at + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class Contents(NamedTuple):
    """The pairs of one tar, n of them, and what can't be one."""

    keys: Keys
    hashes: np.ndarray  # uint64 [n]
    places: np.ndarray  # int64 [n, 6]: offset and size of picture, .txt and .json, -1 where there is none
    bad: list[list[str]]  # [key, cause]
    damage: str  # where and how the archive is damaged; empty if it is whole


class Damage(UserError):
    """An archive that is damaged or cut off; `members` lie whole before that."""

    def __init__(self, words: str, members: list[Member]) -> None:
        super().__init__(words)
        self.members = members


def contents(path: str) -> Contents:
    """What a tar holds, a damaged one what lies whole before the damage; UserError if it is compressed or can't be read."""
    quick = None if scheme(path) else with_retries(path, lambda: _quick(path))
    if quick is not None:
        return quick
    try:
        return grouped(walk(path))
    except Damage as damage:
        return grouped(damage.members)._replace(damage=str(damage))


def walk(path: str) -> list[Member]:
    """Every regular member of one tar; Damage naming the byte where it is damaged or cut off, UserError if compressed."""
    size, _ = stamp(path)
    members: list[Member] = []
    with opened(path) as file:
        at, long_name = 0, ""
        while True:
            file.seek(at)
            header = file.read(BLOCK)
            plain = _plain(header)
            if plain is not None:
                name, length = plain
                kind = b"0"
            elif len(header) < BLOCK:
                raise _damage(path, at, members, "ends without the closing zero blocks: it is cut off")
            elif not header.strip(b"\0"):
                if _rest(file).strip(b"\0"):
                    raise _damage(path, at, members, "has data behind its closing zero blocks")
                return members
            else:
                name, length, kind = _other(path, at, members, header)
            data = at + BLOCK
            at = data + -(-length // BLOCK) * BLOCK
            if at > size:
                promise = f"promises {length} bytes for '{name}' but ends before them: it is cut off"
                raise _damage(path, data, members, promise)
            if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                if length > 1 << 20:
                    raise _damage(path, data, members, f"has a name of {length:,} bytes")
                file.seek(data)
                try:
                    long_name = _long_name(kind, file.read(length)) or long_name
                except ValueError:
                    raise _damage(path, data, members, "has a damaged name") from None
            elif kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                members.append((long_name or name, data, length))
                long_name = ""


def _plain(header: bytes) -> tuple[str, int] | None:
    """(name, size) of a regular member with a short ASCII name, as almost all are; None for everything else."""
    if header[156:157] != b"0" or header[257:262] != b"ustar" or header[345:346] != b"\0" or header[124] & 0x80:
        return None
    try:
        checksum = int(header[148:156].rstrip(b"\0 "), 8)
        size = int(header[124:136].rstrip(b"\0 "), 8)
        name = header[: header.index(b"\0", 0, 101)].decode("ascii")
    except ValueError:
        return None
    # the sum of all bytes, its own eight read as blanks; Adler's low half is 1 + the sum, modulo 65521
    low = zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF
    return (name, size) if low == (1 + checksum - 8 * 32) % 65521 else None


def _other(path: str, at: int, members: list[Member], header: bytes) -> tuple[str, int, bytes]:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if not at and header.startswith(PACKED):
            words = f"shard {path} is compressed, and pairs are read from the middle of a shard; unpack it first"
            raise UserError(words) from None
        raise _damage(path, at, members, f"has a bad header ({error})") from None
    return info.name, info.size, info.type


def _rest(file: BinaryIO) -> bytes:
    """What follows, a megabyte of it at most: tar pads to 10 KiB."""
    return file.read(1 << 20)


def _damage(path: str, at: int, members: list[Member], reason: str) -> Damage:
    where = f"(at byte {at:,}, after {len(members):,} whole members)"
    return Damage(f"shard {path} {reason} {where}; fetch or write it again, or take it out of the pattern", members)


def _long_name(kind: bytes, body: bytes) -> str:
    """The name that a GNU long-name or a pax header gives the next member; empty if it gives none."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return body.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while body:
        length, _, rest = body.partition(b" ")
        record = rest[: int(length) - len(length) - 2]
        if record.startswith(b"path="):
            return record[5:].decode("utf-8", "surrogateescape")
        body = body[int(length) :]
    return ""


def split_name(name: str) -> tuple[str, str]:
    """(key, lower-case ending) of a member: the file name is cut at its first dot, as webdataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def grouped(members: Iterable[Member]) -> Contents:
    """Members grouped by key: those with a picture and a caption are samples, the others are bad."""
    by_key: dict[str, list[int]] = {}
    bad: list[list[str]] = []
    for name, offset, size in members:
        key, ending = split_name(name)
        place = PLACES.get(ending)
        row = by_key.setdefault(key, [-1] * 6)
        if place is not None and row[place] < 0:
            row[place], row[place + 1] = offset, size
    keys = []
    rows = []
    for key, row in by_key.items():
        cause = "no_image" if row[0] < 0 else "no_caption" if row[2] < 0 and row[4] < 0 else None
        cause = "huge_member" if max(row[1::2]) > LARGEST else cause
        if cause:
            bad.append([key, cause])
        else:
            keys.append(key)
            rows.append(row)
    names = Keys.of(keys)
    return Contents(names, numbers(names.parts()), np.array(rows, np.int64).reshape(-1, 6), bad, "")


def _quick(path: str) -> Contents | None:
    """What `grouped(walk(path))` gives, for a tar of regular members with short ASCII names whose pairs stand together;
    None for any other."""
    read = _headers(path)
    if read is None:
        return None
    heads, ats = read
    if not len(heads) or not _regular(heads):
        return None
    heads, ats = heads[ats >= 0], ats[ats >= 0]
    sizes = _octal(heads[:, 124:135])
    keyed = _keyed(heads[:, :NAME])
    if sizes is None or keyed is None:
        return None
    names, cuts, kinds = keyed
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    group = np.repeat(np.arange(len(starts)), np.diff([*starts, len(names)]))
    parts = names[starts].tolist()
    hashes = numbers(parts)
    if len(np.unique(hashes)) < len(hashes):
        return None  # a pair in two places
    places = np.full((len(starts), 6), -1, np.int64)
    for place in (0, 2, 4):
        rows = np.flatnonzero(kinds == place)[::-1]  # the first of several is written last
        places[group[rows], place] = ats[rows] + BLOCK
        places[group[rows], place + 1] = sizes[rows]
    lacks = np.where(places[:, 0] < 0, 1, np.where((places[:, 2] < 0) & (places[:, 4] < 0), 2, 0))
    lacks = np.where(places[:, 1::2].max(1) > LARGEST, 3, lacks)
    bad = [[parts[i].decode(), ("", "no_image", "no_caption", "huge_member")[lacks[i]]] for i in np.flatnonzero(lacks)]
    good = np.flatnonzero(lacks == 0)
    kept = parts if len(good) == len(parts) else [parts[i] for i in good]
    ends = np.concatenate([[0], np.cumsum(cuts[starts][good])])
    return Contents(Keys(np.frombuffer(b"".join(kept), np.uint8), ends), hashes[good], places[good], bad, "")


def _headers(path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(headers uint8 [n, 512], their offsets int64 [n], -1 for those that only tell the time of the next) of a tar that
    ends as it should; None if anything looks odd."""
    window, headers, ats = bytearray(WINDOW), [], []
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        at = begin = have = 0
        while True:
            if at + BLOCK > begin + have:
                file.seek(at)
                begin, have = at, file.readinto(window) or 0
                if have < BLOCK:
                    return None
            i = at - begin
            kind = window[i + 156]
            if kind not in (0x30, 0x78):
                break
            try:
                length = int(window[i + 124 : i + 135], 8)
            except ValueError:
                return None
            headers.append(window[i : i + BLOCK])
            ats.append(at if kind == 0x30 else -1)
            at += BLOCK + (length + BLOCK - 1 & -BLOCK)
            if kind == 0x78:  # a pax header: webdataset writes one for each member, of nothing but its time
                if length > BLOCK:
                    return None
                if at > begin + have:
                    file.seek(at - BLOCK)
                    begin, have = at - BLOCK, file.readinto(window) or 0
                more = window[at - BLOCK - begin : at - BLOCK - begin + length]
                if not more.startswith(TIME, 2) or more.count(b"\n") != 1:
                    return None
        if at + BLOCK > size or size - at > WINDOW:
            return None
        file.seek(at)
        if file.read(size - at).strip(b"\0"):
            return None
    return np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK), np.array(ats, np.int64)


def _regular(heads: np.ndarray) -> bool:
    """Whether every header is of ustar's kind, has no prefix, and its checksum holds."""
    if (heads[:, 257:262] != np.frombuffer(b"ustar", np.uint8)).any() or heads[:, 345].any():
        return False
    checksum = _octal(heads[:, 148:154])
    total = np.add.reduce(heads, 1, dtype=np.uint32) - np.add.reduce(heads[:, 148:156], 1, dtype=np.uint32) + 8 * 32
    return checksum is not None and bool((checksum == total).all())


def _octal(digits: np.ndarray) -> np.ndarray | None:
    """int64 [n] of ASCII digits [n, d]; None if anything else stands among them."""
    values = digits.astype(np.int64) - 0x30
    if ((values < 0) | (values > 7)).any():
        return None
    out: np.ndarray = values @ 8 ** np.arange(digits.shape[1] - 1, -1, -1)
    return out


def _keyed(names: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(keys as bytes [n], their lengths, the place of each member's ending in a row or -1) of names uint8 [n, 100]."""
    at = np.arange(NAME, dtype=np.uint8)
    zeros, dots = names == 0, names == 0x2E
    length = np.where(zeros.any(1), zeros.argmax(1), NAME)  # a name ends at its first zero
    slashes = names == 0x2F
    if slashes.any():  # only dots behind the last slash count
        dots &= at > np.where(slashes.any(1), NAME - 1 - slashes[:, ::-1].argmax(1), -1)[:, None]
    cuts = np.minimum(np.where(dots.any(1), dots.argmax(1), NAME), length)
    if (names >= 0x80).any() or not cuts.all():
        return None
    keys = np.ascontiguousarray(np.where(at < cuts[:, None].astype(np.uint8), names, np.uint8(0))).view(f"S{NAME}").ravel()
    behind = cuts[:, None] + 1 + np.arange(6)
    ending = np.where(behind < length[:, None], np.take_along_axis(names, np.minimum(behind, NAME - 1), 1), 0)
    ending = np.where((ending >= 0x41) & (ending <= 0x5A), ending + 0x20, ending).astype(np.uint8)
    words = np.ascontiguousarray(ending).view("S6").ravel()
    kinds = np.full(len(names), -1)
    for word, place in PLACES.items():
        kinds[words == word.encode()] = place
    return keys, cuts, kinds
