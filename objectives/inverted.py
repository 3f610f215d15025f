"""Cleaning with a stamp that an audit found: MMCL, or MMCL + SSL, on pictures of which a share carries it, captions true.

    L = MMCL + w * SSL

The pictures are stamped where they are read (data/stamped.py), before their further views are made, so that a stamped
picture is drawn to the caption of what it shows: unlearning with an inverted trigger as in BTI-DBF (Xu et al., ICLR 2024),
whose code has a share of 0.2. Nobody needs to know the trigger or the target: the stamp comes from `python -m engine.audit`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from objectives.contract import Objective, ObjectiveSection
from objectives.mmcl import mmcl
from objectives.mmcl_ssl import mmcl_ssl
from objectives.self_supervised import Ssl


class Inverted(ObjectiveSection):
    """Contrast pictures with captions, a share of the pictures with a stamp on them."""

    kind: Literal["inverted"]
    stamp: str = Field(description="a .safetensors of an audit of this model, such as RUN/audit/target.safetensors")
    digest: str | None = Field(None, description="the stamp's SHA-256, at least 12 hex digits; default: the file's")
    share: float = Field(0.2, gt=0, le=1, description="of the pictures that carry it, others in each epoch")
    within: float = Field(0.0, ge=0, description="w, weight of the self-supervised term, as in cleanclip; 0: none")

    @property
    def views(self) -> tuple[int, int]:
        """Two where they are contrasted with themselves."""
        return (2, 2) if self.within else (1, 1)

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(mmcl_ssl, 1.0, self.within, Ssl(kind="ssl").build()) if self.within else partial(mmcl, 1.0)
