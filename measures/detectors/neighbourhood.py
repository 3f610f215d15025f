"""The neighbourhoods that scores of local density are made of, each found once for all detectors that look at the same.

Textbook form. The references are all pairs, or so many drawn by the pairs' own random numbers, with `among: pairs` their
captions too. A pair that is a reference, or equals one, is left out of its own neighbourhood. Up to 100,000 pairs all are
compared with all; beyond, faiss finds the neighbours (measures/detectors/approximate.py) and its recall is told.

Published form: measures/detectors/published.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from measures.detectors import approximate, published
from measures.detectors.contract import Detector, DetectorSection, Embedded, Share, own_range
from measures.detectors.density import Local, lids
from measures.detectors.points import Points, merged
from measures.detectors.search import QUERIES, Near, check_enough, nearest

EXACT = 100_000  # pairs up to which all are compared with all
Form = Literal["textbook", "published"]


class NeighbourSection(DetectorSection):
    """The parent of sections whose scores are made of distances to neighbours."""

    k: int = Field(16, ge=2, le=1000, description="neighbours that make a neighbourhood")
    form: Form = Field("textbook", description="published: as the code of arXiv 2502.01385 computes it, batch by batch")
    raw: bool = Field(False, description="take embeddings as the towers give them, not as unit rows")
    among: Literal["pictures", "pairs"] = Field(
        "pictures", description="what pictures are compared with; pairs: captions too"
    )
    references: int | None = Field(None, ge=3, description="how many pairs are compared with, drawn once; null: all")
    batch: int = Field(1024, ge=4, description="pairs that are compared with each other in the published form")
    uses: ClassVar[frozenset[str]] = frozenset()  # "radii" and "lids" of the neighbours

    @property
    def asks(self) -> frozenset[str]:
        """Pictures and, if they are compared with captions, captions."""
        before = "raw_" if self.raw else ""
        return frozenset({f"{before}images"} | ({f"{before}texts"} if self.among == "pairs" else set()))

    @property
    def place(self) -> tuple[object, ...]:
        """What must be the same of detectors that look at the same neighbourhoods."""
        rest = self.batch if self.form == "published" else self.references
        return self.form, self.raw, self.among, rest, self.k if self.form == "published" else None

    def check(self, pairs: int) -> None:
        """CannotScore if a neighbourhood has too few others, or needs faiss, which is not installed."""
        if self.form == "published":
            published.check_enough(min(part.stop - part.start for part in published.batches(pairs, self.batch)), self.k)
            return
        rows = min(pairs, self.references or pairs) * (1 + (self.among == "pairs"))
        check_enough(rows, self.k)
        if in_cells(pairs, rows):
            approximate.check_installed(rows)

    @abstractmethod
    def score(self, local: Local) -> torch.Tensor:
        """float64 [n]: the scores of some pairs."""

    def build(self) -> Detector:
        """The function (Embedded, Share) -> float64 [N]."""
        return partial(_alone, self)


def in_cells(pairs: int, rows: int) -> bool:
    """Whether so many rows, which so many pairs are compared with, are too many to compare all with all."""
    return pairs > EXACT and rows >= pairs


def _alone(section: NeighbourSection, embedded: Embedded, share: Share) -> torch.Tensor:
    return scores([section], embedded, share)[section.title]


def scores(sections: Sequence[NeighbourSection], embedded: Embedded, share: Share) -> dict[str, torch.Tensor]:
    """float64 [N] by title, of sections with the same `place`; CannotScore if there are too few pairs."""
    first = sections[0]
    before = "raw_" if first.raw else ""
    parts = tuple(embedded.rows(f"{before}{what}") for what in ("images", "texts")[: 1 + (first.among == "pairs")])
    if first.form == "published":
        return _published(sections, embedded, parts, share)
    if first.references is None or first.references >= len(embedded):
        return _among_all(sections, embedded, merged(parts), share)
    drawn = torch.argsort(embedded.order, stable=True)[: first.references].sort().values
    points = merged(tuple(part[drawn] for part in parts))
    return _among_drawn(sections, embedded, points, share)


class References(NamedTuple):
    """The points, the neighbours of this process's share of them, and what detectors ask of every point."""

    points: Points
    near: Near
    radii: dict[int, torch.Tensor]  # by k: float64 [U], the distance to the k-th neighbour
    lids: dict[int, torch.Tensor]


def _references(sections: Sequence[NeighbourSection], embedded: Embedded, points: Points, share: Share) -> References:
    """The references' own neighbourhoods; told to the notes of each section what was merged, and what search was used."""
    own, k = own_range(share, len(points)), max(section.k for section in sections)
    notes: dict[str, float] = {"points": len(points), "merged": points.merged}
    if in_cells(len(embedded), points.total):
        near, recall = approximate.table(points, own, k, share)
        notes["recall"] = recall
    else:
        near = _table(points, own, k, share)
    radii: dict[int, torch.Tensor] = {}
    of_lids: dict[int, torch.Tensor] = {}
    for section in sections:
        embedded.notes[section.title] = dict(notes)
        distances = near.distances[:, : section.k]
        if "radii" in section.uses and section.k not in radii:
            radii[section.k] = _whole(distances[:, -1], own, len(points), share)
        if "lids" in section.uses and section.k not in of_lids:
            of_lids[section.k] = _whole(lids(distances, distances[:, -1:]), own, len(points), share)
    return References(points, near, radii, of_lids)


def _table(points: Points, own: range, k: int, share: Share) -> Near:
    """The neighbours of some points, all compared with all."""
    out = Near(torch.empty(len(own), k, dtype=torch.float64), torch.empty(len(own), k, dtype=torch.int32))
    for begin in range(own.start, own.stop, QUERIES):
        share.beat()
        wanted = torch.arange(begin, min(begin + QUERIES, own.stop))
        found = nearest(points, points.take(wanted), wanted, k)
        for into, what in zip(out, found, strict=True):
            into[begin - own.start : begin - own.start + len(wanted)] = what
    return out


def _whole(part: torch.Tensor, own: range, count: int, share: Share) -> torch.Tensor:
    """[count] on every process of what each has of its own range."""
    out = torch.zeros(count, dtype=part.dtype)
    out[own.start : own.stop] = part
    return share.sum(out)


def _local(section: NeighbourSection, near: Near, references: References) -> Local:
    k = section.k
    others = near.points[:, :k].long()
    return Local(near.distances[:, :k], others, references.radii.get(k), references.lids.get(k))


def _among_all(
    sections: Sequence[NeighbourSection], embedded: Embedded, points: Points, share: Share
) -> dict[str, torch.Tensor]:
    """Every point is a reference, so what was found for them is what is asked."""
    references = _references(sections, embedded, points, share)
    own, out = own_range(share, len(points)), {}
    for section in sections:
        part = torch.empty(len(own), dtype=torch.float64)
        for begin in range(0, len(own), QUERIES):
            rows = slice(begin, begin + QUERIES)
            part[rows] = section.score(_local(section, Near(*(one[rows] for one in references.near)), references))
        out[section.title] = points.of_first(_whole(part, own, len(points), share), len(embedded))
    return out


def _among_drawn(
    sections: Sequence[NeighbourSection], embedded: Embedded, points: Points, share: Share
) -> dict[str, torch.Tensor]:
    """Every pair is sought among the few references."""
    references = _references(sections, embedded, points, share)
    rows, k = embedded.rows("raw_images" if sections[0].raw else "images"), max(section.k for section in sections)
    own = own_range(share, len(rows))
    parts = {section.title: torch.empty(len(own), dtype=torch.float64) for section in sections}
    for begin in range(own.start, own.stop, QUERIES):
        share.beat()
        queries = rows[begin : min(begin + QUERIES, own.stop)]
        near = nearest(points, queries, points.find(queries), k)
        for section in sections:
            at = begin - own.start
            parts[section.title][at : at + len(queries)] = section.score(_local(section, near, references))
    return {title: _whole(part, own, len(rows), share) for title, part in parts.items()}


def _published(
    sections: Sequence[NeighbourSection], embedded: Embedded, parts: tuple[torch.Tensor, ...], share: Share
) -> dict[str, torch.Tensor]:
    """Every pair among those of its batch; batches follow the pairs' own random numbers."""
    order, first = torch.argsort(embedded.order, stable=True), sections[0]
    batches = published.batches(len(order), first.batch)
    out = {section.title: torch.zeros(len(order), dtype=torch.float64) for section in sections}
    for number in range(share.rank, len(batches), share.size):
        share.beat()
        rows = order[batches[number]]
        local = published.local(tuple(part[rows] for part in parts), first.k, any(section.uses for section in sections))
        for section in sections:
            out[section.title][rows] = published.bounded(section.score(local))
    return {title: share.sum(part) for title, part in out.items()}
