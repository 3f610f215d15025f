"""The registry of detectors: one file and one entry each; and all scores of some of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field

from measures.detectors.abl import Abl
from measures.detectors.clip_score import ClipScore
from measures.detectors.contract import ALONE, CannotScore, Embedded, Share
from measures.detectors.dao import Dao
from measures.detectors.k_dist import KDist
from measures.detectors.lid import Lid
from measures.detectors.neighbourhood import NeighbourSection, scores
from measures.detectors.slof import Slof

AnyDetector = Annotated[KDist | Slof | Lid | Dao | ClipScore | Abl, Field(discriminator="kind")]
DEFAULT: tuple[AnyDetector, ...] = (
    KDist(kind="k_dist"), Slof(kind="slof"), Lid(kind="lid"), Dao(kind="dao"), ClipScore(kind="clip_score"),
)  # fmt: skip


def check(sections: Sequence[AnyDetector], pairs: int) -> None:
    """CannotScore, naming the detector, if one can't score so many pairs, whatever they are."""
    for section in sections:
        with _named(section):
            section.check(pairs)


def score_each(
    sections: Sequence[AnyDetector], embedded: Embedded, share: Share = ALONE
) -> Iterator[dict[str, torch.Tensor]]:
    """float64 [N] by title, NaN where a pair has no score: of one detector at a time, or of all that look at the same
    neighbourhoods, which are found once. CannotScore, naming the detector, if the pairs are not such as it can score."""
    done: set[str] = set()
    for section in sections:
        if section.title in done:
            continue
        with _named(section):
            if isinstance(section, NeighbourSection):
                alike = [one for one in sections if isinstance(one, NeighbourSection) and one.place == section.place]
                found = scores(alike, embedded, share)
            else:
                found = {section.title: section.build()(embedded, share)}
        done |= found.keys()
        yield found


def score_all(sections: Sequence[AnyDetector], embedded: Embedded, share: Share = ALONE) -> dict[str, torch.Tensor]:
    """What `score_each` gives, in the order of the sections."""
    out = {title: found for part in score_each(sections, embedded, share) for title, found in part.items()}
    return {section.title: out[section.title] for section in sections}


@contextmanager
def _named(section: AnyDetector) -> Iterator[None]:
    try:
        yield
    except CannotScore as error:
        raise CannotScore(f"detector {section.title}: {error}") from None
