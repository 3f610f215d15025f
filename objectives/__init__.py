"""Objectives: pure mathematics on embeddings. Imports neither data, measures, configs nor engine."""

from typing import Annotated

from pydantic import Field

from objectives.registry import Single
from objectives.sum import Sum

AnyObjective = Annotated[Single | Sum, Field(discriminator="kind")]
