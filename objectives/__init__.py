"""The registry of objectives: one file and one entry each. Imports neither data, measures, configs nor engine."""

from typing import Annotated

from pydantic import Field

from objectives.mmcl import Mmcl
from objectives.mmcl_ssl import MmclSsl

AnyObjective = Annotated[Mmcl | MmclSsl, Field(discriminator="kind")]
