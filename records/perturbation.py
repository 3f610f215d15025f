"""perturbation.json: what a universal perturbation does to a model's answers, of a run that probes a cleaned one."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from records.folder import RecordFile
from records.rows import Count

Share = Annotated[float, Field(ge=0, le=1)]


class Perturbed(BaseModel, frozen=True):
    """The shares of clean and of triggered pictures of other classes that are taken for the target with perturbations of at
    most eps / 255, found for each of both; at 0 without any."""

    eps: Annotated[float, Field(ge=0, le=255)]
    clean: Share
    triggered: Share


class PerturbationJson(RecordFile):
    """What was measured on so many pictures of a set, none of which a perturbation was found on."""

    FILE: ClassVar[str] = "perturbation.json"
    images: str
    pictures: Count
    fooled: tuple[Perturbed, ...]
