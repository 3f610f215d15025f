"""Pictures with captions, to measure retrieval on: CLIP_benchmark's webdataset layout, as for COCO and Flickr.

    FOLDER/test/nshards.txt, test/0.tar, 1.tar, ...    KEY.jpg|png|webp and KEY.txt, a caption a line

Prompts for the attack's target are made of FOLDER/zeroshot_classification_templates.txt, or of the 80 for ImageNet.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.archive import split_name, walk
from data.labelled import SHARDS, ImageSet, shards_of, templates_of
from data.refusal import Missing, UserError
from data.samples import Sample, read_samples
from data.texts import decoded, split_lines

LONGEST = 1 << 20  # bytes of a picture's captions


@dataclass(frozen=True)
class Captioned(ImageSet):
    """Pictures and T captions, one or more a picture."""

    captions: list[str]  # T
    owner: np.ndarray  # int64 [T]: the picture of each, never falling
    templates: list[str]


def is_captioned(folder: str) -> bool:
    """Whether the first shard in a folder of CLIP_benchmark's layout has captions and no labels."""
    first = Path(folder) / "test/0.tar"
    if not first.is_file():
        return False
    endings = {split_name(name)[1] for name, _, _ in walk(str(first))}
    return "txt" in endings and "cls" not in endings


def read_captioned(folder: str, templates: list[str]) -> Captioned:
    """The pictures and captions in a folder; UserError saying which file is missing or wrong."""
    root = Path(folder)
    if not root.is_dir():
        raise Missing(f"evaluation set {folder} is no folder; check the path")
    if not (root / SHARDS).is_file():
        raise UserError(
            f"evaluation set {folder} lacks {SHARDS}; a measure of captions expects CLIP_benchmark's layout "
            "with KEY.txt beside KEY.jpg (docs/data.md)"
        )
    where: list[tuple[str, str, int, int]] = []
    captions: list[str] = []
    owner: list[int] = []
    for path in shards_of(root):
        for sample in read_samples(path, "txt", LONGEST):
            texts = _captions(sample, path)
            owner += [len(where)] * len(texts)
            captions += texts
            where.append((path, sample.key, *sample.place))
    if not where:
        raise UserError(f"evaluation set {folder} holds no picture; expected CLIP_benchmark's layout (docs/data.md)")
    return Captioned(where, captions, np.array(owner), templates_of(root, templates))


def _captions(sample: Sample, path: str) -> list[str]:
    """The lines of a sample that are not blank."""
    lines = (line.strip() for line in split_lines(decoded(sample.text, f"{sample.key}.txt in {path}")))
    if not (captions := [line for line in lines if line]):
        raise UserError(f"sample {sample.key} in {path} has a picture or captions but not both; mend the shard")
    return captions
