"""The registry of detectors: one file and one entry each; and all scores of some of them at once."""

from __future__ import annotations

from collections.abc import Sequence
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


def score_all(sections: Sequence[AnyDetector], embedded: Embedded, share: Share = ALONE) -> dict[str, torch.Tensor]:
    """float64 [N] by title, in the order of the sections, NaN where a pair has no score; neighbourhoods are found once for
    all that look at the same. CannotScore, naming the detector, if the pairs are not such as it can score."""
    out: dict[str, torch.Tensor] = {}
    for section in sections:
        if section.title in out:
            continue
        try:
            if isinstance(section, NeighbourSection):
                alike = [one for one in sections if isinstance(one, NeighbourSection) and one.place == section.place]
                out |= scores(alike, embedded, share)
            else:
                out[section.title] = section.build()(embedded, share)
        except CannotScore as error:
            raise CannotScore(f"detector {section.title}: {error}") from None
    return {section.title: out[section.title] for section in sections}
