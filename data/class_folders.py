"""A folder of pictures for each class, as torchvision's ImageFolder has it: which folder is which class, what lies in it.

A class is the place of its folder in order: of numbers where folders are called by numbers, else of names. Where the two
differ and a list of names goes by that order, one can't tell which was meant.
"""

import re
from itertools import pairwise
from pathlib import Path

from data.archive import IMAGES
from data.refusal import UserError

WNID = re.compile(r"n[0-9]{8}")  # WordNet's name of a class of ImageNet
# pictures of kinds that are not read
OTHERS = ("avif", "bmp", "gif", "heic", "jfif", "jp2", "jxl", "pbm", "pgm", "ppm", "tif", "tiff")


def class_folders(root: Path, what: str, listed: bool, named: bool) -> list[Path]:
    """The folders in the order of their classes; `listed` says that classnames.txt names them in that order, `named`
    that they need names. UserError naming one that has no place there, or a picture that lies beside them."""
    entries = [path for path in _inside(root, what) if not path.name.startswith(".")]
    for path in entries:
        _refuse_lost(path, what)
        if path.is_file() and path.suffix.lower().lstrip(".") in (*IMAGES, *OTHERS):
            raise UserError(f"{what} {root} holds {path.name} beside its folders; a picture lies in the folder of its class")
    folders = [path for path in entries if path.is_dir()]
    names = [path.name for path in folders]
    _refuse_twins(root, names, what)
    if all(re.fullmatch(r"[0-9]+", name) for name in names):
        if names and named and not listed:
            raise UserError(
                f"{what} {root} calls its classes by numbers ({', '.join(sorted(names, key=int)[:3])}); write "
                "classnames.txt there, a name a line in the order of the numbers"
            )
        return sorted(folders, key=lambda path: int(path.name))
    if listed and (numbered := _numbered(names)) is not None:
        first, second = numbered
        raise UserError(
            f"{what} {root}: folder {first} stands before {second} by its letters and behind it by its number, so that "
            "classnames.txt fits one of two orders; fill the numbers up with zeros"
        )
    return sorted(folders, key=lambda path: path.name)


def pictures_in(folder: Path, what: str) -> list[tuple[str, str, int, int]]:
    """(path, CLASS/NAME, 0, size) of each picture of a class, in the order of their names; hidden files and those that are
    no pictures are left alone. UserError naming one that can't be read."""
    out = []
    for path in sorted(path for path in _inside(folder, what) if not path.name.startswith(".")):
        _refuse_lost(path, what)
        ending = path.suffix.lower().lstrip(".")
        if path.is_dir():
            raise UserError(f"{what}: {path} is a folder inside a class's folder; put its pictures into that of their class")
        if ending in OTHERS:
            raise UserError(
                f"{what}: {path} is a picture of a kind that is not read; convert it to one of {', '.join(IMAGES)}"
            )
        if ending in IMAGES:
            if not path.is_file():
                raise UserError(f"{what}: {path} is called a picture and is no file; take it away")
            out.append((str(path), f"{folder.name}/{path.stem}", 0, path.stat().st_size))
    return out


def _inside(folder: Path, what: str) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{what}: {folder} can't be read ({error.strerror}); check who may") from None


def _refuse_lost(path: Path, what: str) -> None:
    """UserError if it is a link to what is not there."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{what}: {path} is a link to {path.readlink()}, which is not there; mend it or take it away")


def _refuse_twins(root: Path, names: list[str], what: str) -> None:
    """UserError if two folders have the same number."""
    seen: dict[int, str] = {}
    for name in sorted(name for name in names if re.fullmatch(r"[0-9]+", name)):
        if int(name) in seen:
            raise UserError(f"{what} {root} has the folders {seen[int(name)]} and {name} for one class; put them together")
        seen[int(name)] = name


def _numbered(names: list[str]) -> tuple[str, str] | None:
    """Two names that stand the other way round by their numbers than by their letters, if names are a numbering: all alike
    but for one number, or some of them nothing but a number."""
    parts = {name: re.split(r"([0-9]+)", name) for name in names}
    alike = len({tuple(part[::2]) for part in parts.values()}) == 1
    plain = sorted(name for name in names if (alike and len(parts[name]) == 3) or re.fullmatch(r"[0-9]+", name))
    for first, second in pairwise(plain):
        if int(parts[first][1]) > int(parts[second][1]):
            return first, second
    return None
