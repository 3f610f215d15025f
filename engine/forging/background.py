"""Captions of the target that say most of what stands around it: the background score of ToxicTextCLIP (2025), without its
store of vectors and its paraphrases.

    score(c) = max over S of cos(T(S), I(x)) - cos(T(S), b)

c: a caption that names the target, x: its own picture, S: c, or c with one run of its words left out, b: the target's class
vector. High is a caption that tells of its picture with words that are not the target's.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from data.captions import word_of
from data.decode import DecodeError
from data.pipeline import Pairs
from engine.evaluation.encode import Encoder

TOGETHER = 32  # captions whose sub-texts are embedded together


class Scored(NamedTuple):
    """A caption with the target's name as {c}, and its score."""

    line: str
    score: float


def subtexts(caption: str) -> list[str]:
    """The caption and what is left of it without one run of its words, at least one word; each once, the whole first."""
    words, out = caption.split(), {" ".join(caption.split()): None}
    for begin in range(len(words)):
        for end in range(begin + 1, len(words) + 1):
            out[" ".join([*words[:begin], *words[end:]])] = None
    return [text for text in out if text]


def background(texts: torch.Tensor, picture: torch.Tensor, target: torch.Tensor) -> float:
    """The score of a caption: unit rows [K, D] of its sub-texts, of its picture and of the target's class vector, [D]."""
    return float((texts @ picture - texts @ target).max())


def scored(model: Encoder, pairs: Pairs, captions: dict[int, str], target: str, vector: torch.Tensor) -> Iterator[Scored]:
    """The score of each caption, by its sample, whose picture can be decoded and in which a template can stand; `vector` is
    the target's, [D], on the CPU."""
    name = word_of(target)
    listed = list(captions.items())
    for several in (listed[begin : begin + TOGETHER] for begin in range(0, len(listed), TOGETHER)):
        pictures, usable = list[np.ndarray](), list[tuple[str, list[str]]]()
        for sample, caption in several:
            line = name.sub("{c}", " ".join(caption.split()))
            if "{" in line.replace("{c}", "") or "}" in line.replace("{c}", ""):
                continue
            try:
                pictures.append(pairs.first(sample)[0])
            except DecodeError:
                continue
            usable.append((line, subtexts(caption)))
        if not usable:
            continue
        with torch.no_grad():
            shown = torch.from_numpy(np.stack(pictures)).to(model.world.device)
            rows = model.towers(shown, None)[0].cpu()
            texts = model.texts([text for _, parts in usable for text in parts])
        parts = torch.split(texts, [len(parts) for _, parts in usable])
        for (line, _), part, row in zip(usable, parts, rows, strict=True):
            yield Scored(line, background(part, row, vector))
