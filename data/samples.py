"""The samples of one tar of an evaluation set: a picture and a text under one key, none of them lost.

Keys end at the first dot of a file's name, as in webdataset. A name with a further dot before its ending, and a second
picture or text under one key, would silently be left out; they are refused.
"""

from typing import NamedTuple

from data.archive import IMAGES, split_name, walk
from data.refusal import UserError


class Sample(NamedTuple):
    """A picture's place in the tar, and its text as it is stored."""

    key: str
    place: tuple[int, int]  # offset and size of the picture
    text: bytes


def read_samples(path: str, ending: str, longest: int) -> list[Sample]:
    """The samples of a tar in the order of their pictures, whose texts end with `ending` and have `longest` bytes at most;
    UserError naming a member that is too many, too long, alone, or not understood."""
    images: dict[str, tuple[str, int, int]] = {}  # by key: the member, its offset and size
    texts: dict[str, tuple[str, bytes]] = {}  # by key: the member, what it holds
    with open(path, "rb") as file:
        for name, offset, size in walk(path):
            key, kind = split_name(name)
            last = kind.rpartition(".")[2]
            hidden = name.rpartition("/")[2].startswith(".")  # such as what macOS puts beside each file
            if hidden or last not in (*IMAGES, ending):
                continue
            if last != kind:
                raise UserError(
                    f"{name} in {path} has a dot in its name, and a key ends at the first dot; rename it and write the "
                    "shard again"
                )
            if first := (texts if kind == ending else images).get(key):
                raise UserError(f"{path} holds {first[0]} and {name} under one key; rename one and write the shard again")
            if kind != ending:
                images[key] = (name, offset, size)
            elif size > longest:
                raise UserError(f"{name} in {path} has {size:,} bytes, more than {longest:,}; mend the shard")
            else:
                file.seek(offset)
                texts[key] = (name, file.read(size))
    if odd := sorted(images.keys() ^ texts.keys()):
        what = "a label" if ending == "cls" else "captions"
        raise UserError(f"sample {odd[0]} in {path} has a picture or {what} but not both; mend the shard")
    return [Sample(key, (offset, size), texts[key][1]) for key, (_, offset, size) in images.items()]
