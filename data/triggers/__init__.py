"""Triggers: the marks that poisoned pictures carry. `python -m data.triggers --sheet out.png` shows them all."""

from typing import Annotated

from pydantic import Field

from data.triggers.concept import Concept
from data.triggers.multi import Multi
from data.triggers.registry import Single

Trigger = Annotated[Single | Multi | Concept, Field(discriminator="kind")]
