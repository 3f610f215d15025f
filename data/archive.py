"""The pairs that one tar holds: nothing in it is ever run, unpickled or written.

`data.tar` walks its headers one by one. `_quick` does the same for a plain tar on this machine with arrays; whatever it
meets that is not plain, it leaves to the walk.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.patience import scheme, with_retries
from data.seeding import numbers
from data.tar import BLOCK as BLOCK
from data.tar import Damage as Damage
from data.tar import Member, members_of, shown
from data.tar import walk as walk

LARGEST = 1 << 27  # bytes of a member; beyond it nobody means a picture or a caption
MOST = 1 << 19  # headers that are held at once
TIME = b" mtime="  # behind the length of the record
WINDOW = 1 << 18  # bytes read at a time: at once for the headers of small members
NAME = 100  # bytes of a name in a header
IMAGES = ("jpg", "jpeg", "png", "webp")
PLACES = {**dict.fromkeys(IMAGES, 0), "txt": 2, "json": 4}  # where a member's offset and size stand in a row


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


def contents(path: str) -> Contents:
    """What a tar holds, a damaged one what lies whole before the damage; UserError if it is compressed or can't be read."""
    quick = None if scheme(path) else with_retries(path, lambda: _quick(path))
    if quick is not None:
        return quick
    try:
        return grouped(*with_retries(path, lambda: members_of(path)))
    except Damage as damage:
        return grouped(damage.members, damage.others)._replace(damage=str(damage))


def split_name(name: str) -> tuple[str, str]:
    """(key, lower-case ending) of a member: the file name is cut at its first dot, as webdataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def dotted(name: str) -> tuple[str, str] | None:
    """(key, lower-case ending) of a picture or caption cut at its last dot, if that is not its first."""
    stem, _, ending = name.rpartition(".")
    base = stem.rpartition("/")[2]
    return (stem, ending.lower()) if "." in base[1:] and base[0] != "." and ending.lower() in PLACES else None


class _Groups:
    """The members of one tar by key, those with several dots in their names under the key that they were meant to have."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}  # as of Contents.places
        self.owners: dict[str, str] = {}  # of a key with a dot: the key up to its first dot
        self.unstored: set[str] = set()  # keys with a picture or caption that is a link or sparse
        self.seen: set[tuple[str, str]] = set()
        self.again: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, offset: int = -1, size: int = -1) -> None:
        """One member, at an offset of -1 if its bytes are not there."""
        key, ending = split_name(name)
        if "." in ending and (apart := dotted(name)):
            self.owners[apart[0]] = key
            key, ending = apart
        row = self.rows.setdefault(key, [-1] * 6)
        place = PLACES.get(ending)
        if place is None:
            return
        if (key, ending) in self.seen:
            self.again[key, ending] += 1
        self.seen.add((key, ending))
        if offset < 0:
            self.unstored.add(key)
        elif row[place] < 0:
            row[place], row[place + 1] = offset, size

    def cause(self, key: str) -> str | None:
        """Why a key is no pair; None of one that is."""
        if shown(key) != key:
            return "name_not_utf8"
        row = self.rows.get(key, [-1] * 6)
        lacks = "no_image" if row[0] < 0 else "no_caption" if row[2] < 0 and row[4] < 0 else None
        if lacks and key in self.unstored:
            return "link_or_sparse"
        return "huge_member" if max(row[1::2]) > LARGEST else lacks

    def further(self, key: str) -> bool:
        """Whether a key with a dot belongs to a pair, as KEY.mask.png does to KEY, and is no pair that was meant as one."""
        return key in self.owners and self.cause(key) is not None and self.cause(self.owners[key]) is None


def grouped(members: Iterable[Member], others: Iterable[str] = ()) -> Contents:
    """Members grouped by key: those with a picture and a caption are samples, all else that is no further member of a
    sample is bad; so is every time that a picture or caption of one name comes again. `others` are members without bytes of
    their own."""
    groups = _Groups()
    for name, offset, size in members:
        groups.add(name, offset, size)
    for name in others:
        groups.add(name)
    keys, rows, bad = [], [], list[list[str]]()
    for key, row in groups.rows.items():
        cause = groups.cause(key)
        if key in groups.owners:
            cause = "dot_in_name"
        if cause is None:
            keys.append(key)
            rows.append(row)
        elif not groups.further(key):
            bad.append([shown(key), cause])
    times: dict[str, int] = {}
    for (key, _), number in groups.again.items():
        times[key] = max(times.get(key, 0), number)
    for key, number in times.items():
        if not groups.further(key):
            bad += [[shown(key), "duplicate_key"]] * number
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
    known = kinds >= 0
    if np.bincount(6 * group[known] + kinds[known]).max(initial=0) > 1:
        return None  # two pictures, or a name that comes again
    parts = names[starts].tolist()
    hashes = numbers(parts)
    if len(np.unique(hashes)) < len(hashes):
        return None  # a pair in two places
    places = np.full((len(starts), 6), -1, np.int64)
    for place in (0, 2, 4):
        rows = np.flatnonzero(kinds == place)
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
    window, headers, ats = bytearray(WINDOW), bytearray(), list[int]()
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
            if length < 0 or len(ats) == MOST:
                return None
            headers += window[i : i + BLOCK]
            ats.append(at if kind == 0x30 else -1)
            at += BLOCK + (length + BLOCK - 1 & -BLOCK)
            if kind == 0x78:  # a pax header: webdataset writes one for each member
                if at > begin + have:
                    file.seek(at - BLOCK)
                    begin, have = at - BLOCK, file.readinto(window) or 0
                if not _time_alone(window[at - BLOCK - begin : at - BLOCK - begin + min(length, BLOCK)], length):
                    return None
        if at + BLOCK > size or size - at > WINDOW or ats[-1:] == [-1]:
            return None
        file.seek(at)
        if file.read(size - at).strip(b"\0"):
            return None
    return np.frombuffer(headers, np.uint8).reshape(-1, BLOCK), np.array(ats, np.int64)


def _time_alone(body: bytearray, length: int) -> bool:
    """Whether the body of a pax header is one well-formed record of a time."""
    return body.startswith(b"%d%b" % (length, TIME)) and body.find(b"\n") == length - 1 == len(body) - 1


def _regular(heads: np.ndarray) -> bool:
    """Whether every header is of ustar's kind, has no prefix, its numbers end where they should, and its checksum holds."""
    if (heads[:, 257:262] != np.frombuffer(b"ustar", np.uint8)).any() or heads[:, 345].any():
        return False
    if (heads[:, (135, 154)] & 0xDF).any():  # a zero or a blank
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
    if (names >= 0x80).any() or not cuts.all() or (dots.sum(1) > 1).any():
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
