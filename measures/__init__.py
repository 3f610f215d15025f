"""The registry of measures: one file and one entry each. Imports neither data, objectives, configs nor engine."""

from typing import Annotated

from pydantic import Field

from measures.attack_success import AttackSuccess
from measures.linear_probe import LinearProbe
from measures.zero_shot import ZeroShot

AnyMeasure = Annotated[ZeroShot | AttackSuccess | LinearProbe, Field(discriminator="kind")]
