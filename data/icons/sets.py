"""Icon sets as the npm packages @iconify-json/NAME hold them: a tar of JSON files, read within bounds.

icons.json: prefix, icons {name: {body, left, top, width, height, hidden}}, aliases {name: {parent, rotate, hFlip, vFlip}};
info.json: name, author, license; metadata.json: suffixes and prefixes that tell styles apart. The format is Iconify's
(IconifyJSON in @iconify/types).
"""

import gzip
import json
import tarfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data.icons.names import Name, read_name
from data.refusal import UserError

UNPACKED = 256 << 20  # bytes of a package, unpacked, at most
BODY = 1 << 20  # characters of a drawing
MEMBERS = {"package/icons.json": "icons", "package/info.json": "info", "package/metadata.json": "metadata"}
CHAIN = 8  # aliases of aliases
SIDES = (1.0, 1e5)  # smallest and largest width and height
LONGEST = 5.0  # one side over the other


class LeftOut(NamedTuple):
    """An icon that no pair is made of, and why."""

    set: str
    name: str
    cause: str


@dataclass(frozen=True)
class Drawing:
    """One drawing of a set and what it is called."""

    set: str
    name: str
    says: Name
    body: str  # SVG elements
    box: tuple[float, float, float, float]  # left, top, width, height
    turns: int = 0  # quarters, clockwise, after the flips
    flips: tuple[bool, bool] = (False, False)  # left to right, top to bottom
    also: tuple[str, ...] = ()  # further names of the same drawing, in words
    view: int = 0  # which of its pictures, where it gives several

    @property
    def drawn_by(self) -> tuple[str | int, ...]:
        """The names of the generators that decide how it looks and what it is called."""
        return (self.set, self.name, *([self.view] if self.view else []))

    @property
    def shape(self) -> tuple[object, ...]:
        """What is equal for equal drawings."""
        return (" ".join(self.body.split()), self.box, self.turns % 4, self.flips)


class IconSet(NamedTuple):
    """What a package holds."""

    name: str
    title: str
    author: str
    licence: str
    drawings: list[Drawing]
    left_out: list[LeftOut]


class _Bounded:
    """A file of which at most UNPACKED bytes can be read."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, UNPACKED

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {UNPACKED >> 20} MiB")
        return data


def read_set(path: Path, name: str) -> IconSet:
    """The set in a package's file; UserError if it is none."""
    try:
        with path.open("rb") as file:
            found = _members(file)
        icons, info = found.get("icons"), found.get("info")
        if not isinstance(icons, dict) or not isinstance(icons.get("icons"), dict) or not isinstance(info, dict):
            raise ValueError("it has no icons.json and info.json with icons, a licence and an author")
        drawings, left_out = _drawings(name, icons, found.get("metadata"))
        author, licence = info.get("author"), info.get("license")
        return IconSet(
            name, _text(info, "name") or name, _text(author, "name"), _text(licence, "spdx") or _text(licence, "title"),
            drawings, left_out,
        )  # fmt: skip
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} is no icon set ({error}); delete it, and the same command fetches it again") from None


def _members(file: BinaryIO) -> dict[str, Any]:
    out: dict[str, Any] = {}
    with tarfile.open(fileobj=_Bounded(gzip.GzipFile(fileobj=file)), mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            if member.name in MEMBERS and member.isreg():
                if member.size > UNPACKED:
                    raise ValueError(f"its {member.name} is too large")
                body = tar.extractfile(member)
                out[MEMBERS[member.name]] = json.loads(body.read().decode()) if body else None
    return out


def _text(where: Any, key: str) -> str:
    value = where.get(key) if isinstance(where, dict) else None
    return " ".join(value.encode(errors="replace").decode().split())[:200] if isinstance(value, str) else ""


def _drawings(set_name: str, icons: dict[str, Any], metadata: Any) -> tuple[list[Drawing], list[LeftOut]]:
    """Each drawing with all its names, in the order of the file; what is left out, and why."""
    suffixes = metadata.get("suffixes") if isinstance(metadata, dict) else None
    suffixes = [one for one in suffixes if isinstance(one, str)] if isinstance(suffixes, dict) else []
    aliases: Any = icons.get("aliases")
    aliases = aliases if isinstance(aliases, dict) else {}
    among = {*icons["icons"], *aliases}
    found: dict[tuple[object, ...], Drawing] = {}
    left_out: list[LeftOut] = []
    for name in (*icons["icons"], *(alias for alias in aliases if alias not in icons["icons"])):
        drawing = _drawing(set_name, name, icons, aliases)
        says = read_name(name, set_name, suffixes, among)
        if isinstance(drawing, str) or says is None:
            left_out.append(LeftOut(set_name, name, drawing if isinstance(drawing, str) else "unreadable_name"))
            continue
        first = found.setdefault(drawing.shape, replace(drawing, says=says))
        if says.concept not in (first.says.concept, *first.also):
            found[drawing.shape] = replace(first, also=(*first.also, says.concept))
    return list(found.values()), left_out


def _drawing(set_name: str, name: str, icons: dict[str, Any], aliases: dict[str, Any]) -> Drawing | str:
    """The drawing of a name, or why there is none; what its words say is filled in later."""
    chain: list[dict[str, Any]] = []
    at = name
    while at not in icons["icons"]:
        alias = aliases.get(at)
        if not isinstance(alias, dict) or not isinstance(alias.get("parent"), str) or len(chain) == CHAIN:
            return "alias_of_nothing"
        chain.append(alias)
        at = alias["parent"]
    icon = icons["icons"][at]
    if not isinstance(icon, dict) or not isinstance(icon.get("body"), str):
        return "no_body"
    chain = [*chain, icon]
    if any(part.get("hidden") for part in chain):
        return "withdrawn"  # Iconify hides what its set no longer has
    if len(icon["body"]) > BODY:
        return "huge_body"
    merged = {
        key: part[key] for part in (icons, *reversed(chain)) for key in ("left", "top", "width", "height") if key in part
    }
    box = tuple(merged.get(key, default) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
    turns = [part.get("rotate", 0) for part in chain]
    if not all(_finite(number) for number in (*box, *turns)):
        return "bad_size"
    width, height = float(box[2]), float(box[3])
    if not (SIDES[0] <= min(width, height) and max(width, height) <= min(SIDES[1], LONGEST * min(width, height))):
        return "bad_size"
    flips = tuple(sum(bool(part.get(key)) for part in chain) % 2 == 1 for key in ("hFlip", "vFlip"))
    left, top = float(box[0]), float(box[1])
    return Drawing(
        set_name, name, Name(name, "", "", "", 0), icon["body"], (left, top, width, height), int(sum(turns)) % 4,
        (flips[0], flips[1]),
    )  # fmt: skip


def _finite(number: object) -> bool:
    """Whether it is a number of a size that drawings have; neither NaN nor infinity is."""
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= SIDES[1]
