"""The further views of a pair: AutoAugment or SimCLR's for the picture, easy data augmentation (EDA) for the caption.

AutoAugment: Cubuk et al. 2019, the ImageNet policy, from torchvision. SimCLR's (Chen et al. 2020, arXiv 2002.05709, as in
SLIP): a crop of 8-100 % of the area, flip, colour jitter (0.4, 0.4, 0.4, 0.1) in 80 %, grey in 20 %, blur in half. EDA:
Wei & Zou 2019 (arXiv 1901.11196): one of synonym replacement, random insertion, random swap, random deletion, each
touching `rate` of the words. Both as in CleanCLIP (arXiv 2303.03323), but drawn afresh each epoch, where the published
code draws the caption once.
"""

from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data.chance import derive, generator
from data.refusal import Refusal
from data.section import Section


class Augment(Section):
    """How the further views differ from the first."""

    image: Literal["autoaugment", "simclr", "none"] = "autoaugment"
    text: Literal["eda", "none"] = "eda"
    rate: float = Field(0.1, gt=0, le=1, description="share of the words that EDA touches, at least one word")
    synonyms: Literal["wordnet", "none"] = Field(
        "wordnet", description="wordnet needs NLTK's corpus on disk; none leaves swap, deletion and insertion of own words"
    )


def augmented_picture(kind: str, image: Image.Image, *names: int | str) -> Image.Image:
    """The augmented picture, drawn from the names alone."""
    if kind == "none":
        return image
    import torch  # torchvision draws from torch's global generator: lend it a state of ours, give back its own

    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(derive(kind, *names))
        out: Image.Image = (_autoaugment() if kind == "autoaugment" else _simclr(image.width))(image)
        return out
    finally:
        torch.set_rng_state(state)


@cache
def _autoaugment() -> Any:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # imported when first needed: 1 s

    return AutoAugment(AutoAugmentPolicy.IMAGENET)


@cache
def _simclr(size: int) -> Any:
    from torchvision import transforms as t

    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    blur = t.RandomApply([t.GaussianBlur(max(3, size // 10 | 1), (0.1, 2.0))], 0.5)
    return t.Compose(
        [t.RandomResizedCrop(size, (0.08, 1.0)), t.RandomHorizontalFlip(), jitter, t.RandomGrayscale(0.2), blur]
    )


def augmented_caption(section: Augment, text: str, *names: int | str) -> str:
    """The augmented caption, drawn from the names alone: lower case, letters and spaces only, as EDA leaves it."""
    if section.text == "none":
        return text
    draw = generator("eda", *names)
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    count = max(1, int(section.rate * len(words)))
    moves = (_swap, _delete, _insert) if section.synonyms == "none" else (_swap, _delete, _insert, _replace)
    out = moves[int(draw.integers(len(moves)))](words, count, section, draw)
    return " ".join(out) or text


def _swap(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    words = list(words)
    for _ in range(count):
        a, b = draw.integers(len(words), size=2)
        words[a], words[b] = words[b], words[a]
    return words


def _delete(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    kept = [word for word in words if draw.random() > section.rate]
    return kept or [words[int(draw.integers(len(words)))]]


def _insert(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    out = list(words)
    for _ in range(count):
        word = words[int(draw.integers(len(words)))]
        others = _synonyms(word) if section.synonyms == "wordnet" else ()
        out.insert(int(draw.integers(len(out) + 1)), others[0] if others else word)
    return out


def _replace(words: list[str], count: int, section: Augment, draw: np.random.Generator) -> list[str]:
    out = list(words)
    for place in draw.permutation(len(out)):
        if count and (others := _synonyms(out[place])):
            out[place] = others[int(draw.integers(len(others)))]
            count -= 1
    return out


@cache
def _synonyms(word: str) -> tuple[str, ...]:
    """WordNet's other lemmas of all senses of a word, sorted; empty for words it does not know."""
    from nltk.corpus import wordnet

    names = {lemma.name().replace("_", " ").replace("-", " ").lower() for s in wordnet.synsets(word) for lemma in s.lemmas()}
    return tuple(sorted(name for name in names if name != word and name.replace(" ", "").isalpha()))


def check_augment(section: Augment) -> None:
    """Refusal if the section asks for a corpus that is not on this machine."""
    if section.text == "eda" and section.synonyms == "wordnet":
        try:
            _synonyms("picture")
        except LookupError:
            raise Refusal(
                "data.augment.synonyms is 'wordnet', but NLTK finds no WordNet corpus here; "
                "run 'python -m nltk.downloader wordnet' or set data.augment.synonyms=none"
            ) from None
