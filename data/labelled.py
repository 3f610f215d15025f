"""Labelled evaluation sets in CLIP_benchmark's layout.

FOLDER/classnames.txt, FOLDER/zeroshot_classification_templates.txt (one template a line, with {c}),
FOLDER/test/nshards.txt and FOLDER/test/0.tar, 1.tar, ... with KEY.jpg|png|webp and KEY.cls (the class as an integer).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.decode import Bad, picture, pixels
from data.poison import read_templates
from data.refusal import Refusal
from data.shards import IMAGES, split_name, walk


@dataclass(frozen=True)
class Labelled:
    """M labelled pictures and the C classes: `where` lists (path, key, offset, size) of each picture."""

    classes: list[str]
    templates: list[str]
    labels: np.ndarray  # int64 [M]
    where: list[tuple[str, str, int, int]]

    def __len__(self) -> int:
        return len(self.where)

    def target(self, name: str) -> int:
        """The class of that name; Refusal naming close ones."""
        if name not in self.classes:
            from difflib import get_close_matches

            near = get_close_matches(name, self.classes, 3) or self.classes[:5]
            raise Refusal(
                f"attack.target is '{name}', which is none of the {len(self.classes)} class names of the evaluation set "
                f"(nearest: {', '.join(near)}); name one of them"
            )
        return self.classes.index(name)

    def pictures(self, rows: range | list[int], size: int) -> np.ndarray:
        """uint8 [len(rows), 3, size, size]; an evaluation picture that does not decode is a Refusal naming it."""
        out = np.empty((len(rows), 3, size, size), np.uint8)
        for i, row in enumerate(rows):
            path, key, offset, length = self.where[row]
            with open(path, "rb") as file:
                file.seek(offset)
                body = file.read(length)
            try:
                out[i] = pixels(picture(body, size))
            except Bad as bad:
                words = f"evaluation picture {key} in {path}: {bad}; an accuracy can't skip pictures, mend it"
                raise Refusal(words, alone=True) from None
        return out


def read_labelled(folder: str) -> Labelled:
    """The evaluation set in a folder; Refusal saying which file is missing or wrong."""
    root = Path(folder)
    missing = [
        name
        for name in ("classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt")
        if not (root / name).is_file()
    ]
    if missing:
        raise Refusal(f"evaluation set {folder} lacks {', '.join(missing)}; expected CLIP_benchmark's layout (docs: README)")
    classes = [line.strip() for line in (root / "classnames.txt").read_text("utf-8").splitlines() if line.strip()]
    where: list[tuple[str, str, int, int]] = []
    labels: list[int] = []
    for shard in range(int((root / "test/nshards.txt").read_text())):
        path = str(root / f"test/{shard}.tar")
        if not Path(path).is_file():
            raise Refusal(f"evaluation set {folder} lacks test/{shard}.tar, which test/nshards.txt promises")
        _read_shard(path, len(classes), where, labels)
    return Labelled(classes, read_templates(root / "zeroshot_classification_templates.txt"), np.array(labels), where)


def _read_shard(path: str, classes: int, where: list[tuple[str, str, int, int]], labels: list[int]) -> None:
    image: dict[str, tuple[int, int]] = {}
    label: dict[str, int] = {}
    with open(path, "rb") as file:
        for name, offset, size in walk(path):
            key, ending = split_name(name)
            if ending in IMAGES:
                image[key] = (offset, size)
            elif ending == "cls":
                file.seek(offset)
                text = file.read(min(size, 32)).strip()
                if not text.isdigit() or int(text) >= classes:
                    raise Refusal(f"label {text!r} of {key} in {path} is no class from 0 to {classes - 1}; mend the shard")
                label[key] = int(text)
    if image.keys() != label.keys():
        odd = sorted(image.keys() ^ label.keys())[0]
        raise Refusal(f"sample {odd} in {path} has a picture or a label but not both; mend the shard")
    for key in image:
        where.append((path, key, *image[key]))
        labels.append(label[key])
