"""Labelled pictures, to evaluate on or to learn from: CLIP_benchmark's webdataset layout, or a folder of pictures a class.

    FOLDER/classnames.txt                              a name a line; for folders of classes, in their order
    FOLDER/zeroshot_classification_templates.txt       one template a line, with {c}
    FOLDER/test/nshards.txt, test/0.tar, 1.tar, ...    KEY.jpg|png|webp and KEY.cls (the class as an integer)
    or FOLDER/CLASS/*.jpg ...                          torchvision's ImageFolder, such as ImageNet's val/n01440764/...

Without classnames.txt folders called by WordNet's names of ImageNet's classes get ImageNet's names, others their folders'
names; without templates the 80 for ImageNet are taken.
"""

import html
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.archive import LARGEST
from data.captions import read_templates
from data.class_folders import WNID, class_folders, pictures_in
from data.decode import DecodeError, DecodeMode, centred, squeezed, whole
from data.refusal import Missing, UserError
from data.samples import read_samples
from data.store import Reader
from data.texts import decoded, file_bytes, read_lines

NAMES = "classnames.txt"
LABEL = 64  # bytes of a label, at most
SHARDS = "test/nshards.txt"  # how many shards a folder of CLIP_benchmark's layout has
# the published label file counts the machine among the birds, and the bathing suit among the tights
PUBLISHED_LABELS = {517: 134, 639: 638}
PUBLISHED_NAMES = {744: "missile", 836: "sunglasses"}  # the same names as 657 and 837
RIGHT_NAMES = {744: "projectile", 836: "sunglass"}


class Imagenet(NamedTuple):
    """ImageNet's 1,000 class names in the order of its folders, the folders' names, and the 80 templates."""

    classes: list[str]
    wnids: list[str]
    templates: list[str]

    def named(self, published: bool) -> list[str]:
        """The class names, no two the same; or, as published, with "missile" and "sunglasses" twice."""
        names = PUBLISHED_NAMES if published else RIGHT_NAMES
        return [names.get(i, name) for i, name in enumerate(self.classes)]


@dataclass(frozen=True)
class ImageSet:
    """M pictures: `where` lists (path, key, offset, size) of each."""

    where: list[tuple[str, str, int, int]]

    def __len__(self) -> int:
        return len(self.where)

    def pictures(
        self, rows: range | list[int], size: int, mode: DecodeMode = "exact", squashes: tuple[int | None, ...] = ()
    ) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """(uint8 [n, 3, size, size], and for each number in `squashes` uint8 [n, 3, side, side], squeezed to that side),
        decoded once; an evaluation picture that does not decode is a UserError naming it."""
        out = _empty(len(rows), size)
        further = [None if side is None else _empty(len(rows), side) for side in squashes]
        reader = Reader()
        for i, row in enumerate(rows):
            path, key, offset, length = self.where[row]
            if length > LARGEST:
                words = f"has {length:,} bytes, more than {LARGEST:,}, which no picture has; mend it"
                raise UserError(f"evaluation picture {key} in {path} {words}", alone=True)
            try:
                rgb = whole(reader.read([(path, offset, length)])[0], 0 if any(squashes) else size, mode)
            except DecodeError as bad:
                words = f"evaluation picture {key} in {path}: {bad}; an accuracy can't skip pictures, mend it"
                raise UserError(words, alone=True) from None
            out[i] = centred(rgb, size, mode)
            for part, side in zip(further, squashes, strict=True):
                if part is not None and side is not None:
                    part[i] = squeezed(rgb, side)
        reader.close()
        return out, further


def _empty(number: int, side: int) -> np.ndarray:
    """uint8 [n, 3, side, side]; in memory pixel by pixel, as decoders give pictures and filters want them."""
    return np.empty((number, side, side, 3), np.uint8).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Labelled(ImageSet):
    """Pictures of C classes."""

    classes: list[str]
    templates: list[str]
    labels: np.ndarray  # int64 [M]

    def target(self, name: str, field: str = "attack.target") -> int:
        """The class of that name, which a field of the spec gives; UserError naming close ones, or where two have it."""
        if name not in self.classes:
            from difflib import get_close_matches

            near = get_close_matches(name, self.classes, 3) or self.classes[:5]
            raise UserError(
                f"{field} is '{name}', which is none of the {len(self.classes)} class names of the evaluation set "
                f"(nearest: {', '.join(near)}); name one of them"
            )
        first = self.classes.index(name)
        if name in self.classes[first + 1 :]:
            second = self.classes.index(name, first + 1)
            raise UserError(f"{field} is '{name}', which is the name of classes {first} and {second}; name another class")
        return first

    def difference(self, other: "Labelled") -> str:
        """The first class that differs from the other's, in words; empty if the lists are equal."""
        for number, (mine, theirs) in enumerate(zip_longest(self.classes, other.classes)):
            if mine != theirs:
                here, there = ("missing" if name is None else f"'{name}'" for name in (mine, theirs))
                return f"class {number:,} is {here} in the first and {there} in the second"
        return ""


def read_labelled(
    folder: str, imagenet: Imagenet, published: bool = False, what: str = "evaluation set", named: bool = True
) -> Labelled:
    """The labelled pictures in a folder; UserError saying of `what` they are which file is missing or wrong. `published`
    reproduces the label file and the class list of the published code where the set is ImageNet; `named` says that prompts
    are made of the names, so that a number is none."""
    root = Path(folder)
    if not root.is_dir():
        raise Missing(f"{what} {folder} is no folder; check the path")
    templates = templates_of(root, imagenet.templates)
    where: list[tuple[str, str, int, int]] = []
    labels: list[int] = []
    if (root / SHARDS).is_file():
        if not _there(root / NAMES):
            raise UserError(f"{what} {folder} lacks classnames.txt; expected CLIP_benchmark's layout (docs/data.md)")
        classes = _names(root)
        for path in shards_of(root, what):
            _read_shard(path, len(classes), where, labels)
    else:
        classes = _read_folders(root, imagenet, where, labels, what, named)
    same = len(classes) == 1000 and classes[657] == imagenet.classes[657] and classes[134] == imagenet.classes[134]
    if same:
        classes = imagenet.named(published)
        labels = [PUBLISHED_LABELS.get(label, label) for label in labels] if published else labels
    if not published:
        _refuse_twins(classes, f"{what} {folder}")
    if not where:
        raise UserError(f"{what} {folder} holds no picture; expected CLIP_benchmark's layout or a folder a class")
    return Labelled(where, classes, templates, np.array(labels))


def templates_of(root: Path, others: list[str]) -> list[str]:
    """The templates in an evaluation set's folder, or else the others."""
    lines = root / "zeroshot_classification_templates.txt"
    return read_templates(lines) if _there(lines) else others


def shards_of(root: Path, what: str = "evaluation set") -> Iterator[str]:
    """The paths of the shards that a folder of CLIP_benchmark's layout promises; UserError at one that is not there, or at
    one more than that."""
    wants = "give the number of shards, such as 1"
    text = decoded(file_bytes(root / SHARDS, what, wants), f"{what} {root / SHARDS}").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise UserError(f"{what} {root / SHARDS} says {text[:40]!r}; {wants}")
    for shard in range(int(text)):
        path = root / f"test/{shard}.tar"
        if not path.is_file():
            raise UserError(f"{what} {root} lacks test/{shard}.tar, which {SHARDS} promises")
        yield str(path)
    if (root / f"test/{int(text)}.tar").is_file():
        raise UserError(f"{what} {root} holds test/{int(text)}.tar, one more than {SHARDS} says; mend the number")


def _there(path: Path) -> bool:
    """Whether a folder lists the name, were it that of a link to nothing, which is then refused when it is read."""
    return path.is_symlink() or path.exists()


def _names(root: Path) -> list[str]:
    """The lines of classnames.txt; UserError at a blank one, which would shift the classes behind it."""
    wants = "give a class name in each line, in the order of the labels"
    names = read_lines(root / NAMES, "class names", wants)
    if "" in names:
        raise UserError(f"class names {root / NAMES}:{names.index('') + 1} is blank; {wants}")
    return names


def _refuse_twins(classes: list[str], what: str) -> None:
    """UserError if two names are the same prompt: tokenizers lower letters, join blanks and undo HTML's entities."""
    seen: dict[str, str] = {}
    for name in classes:
        alike = " ".join(unicodedata.normalize("NFC", html.unescape(html.unescape(name))).lower().split())
        if alike in seen:
            also = f" (and '{name}')" if name != seen[alike] else ""
            raise UserError(
                f"{what} names the class '{seen[alike]}' twice{also}; a picture could never be right: rename one"
            )
        seen[alike] = name


def _read_folders(
    root: Path, imagenet: Imagenet, where: list[tuple[str, str, int, int]], labels: list[int], what: str, named: bool
) -> list[str]:
    listed = _there(root / NAMES)
    folders = class_folders(root, what, listed, named)
    if listed:
        classes = _names(root)
    elif named and folders and all(WNID.fullmatch(path.name) for path in folders):
        classes = _named_by_wnid(root, [path.name for path in folders], imagenet, what)
    else:
        classes = [path.name.replace("_", " ") for path in folders]
    if len(classes) != len(folders) or not folders:
        raise UserError(
            f"{what} {root} has {len(folders):,} folders of pictures and {len(classes):,} class names; expected "
            "CLIP_benchmark's layout with test/nshards.txt, or a folder a class"
        )
    for label, inside in enumerate(folders):
        pictures = pictures_in(inside, what)
        where += pictures
        labels += [label] * len(pictures)
    return classes


def _named_by_wnid(root: Path, wnids: list[str], imagenet: Imagenet, what: str) -> list[str]:
    """ImageNet's names of some of its classes; UserError if one is none of them."""
    if wnids == imagenet.wnids:
        return list(imagenet.classes)
    names = dict(zip(imagenet.wnids, imagenet.named(published=False), strict=True))
    if strange := [wnid for wnid in wnids if wnid not in names]:
        raise UserError(
            f"{what} {root} has {len(strange):,} folders that are none of ImageNet's 1,000 classes, such as {strange[0]}; "
            "write classnames.txt there, a name a line in the order of the folders"
        )
    return [names[wnid] for wnid in wnids]


def _read_shard(path: str, classes: int, where: list[tuple[str, str, int, int]], labels: list[int]) -> None:
    for sample in read_samples(path, "cls", LABEL):
        text = sample.text.removeprefix(BOM_UTF8).strip()
        if not text.isdigit() or int(text) >= classes:
            raise UserError(f"label {text!r} of {sample.key} in {path} is no class from 0 to {classes - 1}; mend the shard")
        where.append((path, sample.key, *sample.place))
        labels.append(int(text))
