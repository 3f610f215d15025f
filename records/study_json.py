"""study.json: what was asked, and the runs that answer it."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from records.folder import RecordFile

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a study's name, as a spec may give it: folders and files are named by it
StageName = Literal["pretrain", "twin", "clean"]
ControlName = Literal["twin", "fresh"]  # a cleaning of the twin, or one that keeps nothing of its start

ProbeName = Literal["retune", "line", "int8", "bf16", "average", "norms", "perturb"]


class Probe(BaseModel, frozen=True):
    """What a run asks of a cleaned model: how it answers to training on clean pairs with so many poisoned ones (`amount`),
    on the line to the poisoned weights (`amount`: how far), in another format, averaged with the twin, with BatchNorm's
    statistics made anew, on perturbed pictures. `of`: the chosen cleaning; `twin`: whether from its twin."""

    of: str
    kind: ProbeName
    amount: float | None = None
    twin: bool = False


class LeftOut(BaseModel):
    """What a pre-training leaves out of its pairs: by which way, by which file or detector, how many, and `whole`, the run
    that is the same with nothing left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    way: Literal["file", "detector", "random", "plan"]
    file: str | None = None
    detector: str | None = None
    share: float | None = None
    count: int | None = None
    whole: str


class RunEntry(BaseModel):
    """One run of a study; `run` is its folder's name, `start` that of the run that it starts from, or `weights-...`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str
    stage: StageName
    title: str = ""
    start: str | None = None
    pretrain_objective: str
    clean_objective: str | None = None
    cleaner: str | None = None  # what the sweep calls it, or its objective
    rate: float | None = None
    seed: int | None = None
    swept: dict[str, Any] = {}
    cleaning: tuple[str, ...] = ()  # the names in `swept` that concern the cleaning alone
    control: ControlName | None = None
    without: LeftOut | None = None
    after: Probe | None = Field(None, exclude_if=lambda probe: probe is None)  # of runs that probe a cleaned model

    @field_validator("run")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"a run is named {name!r}, expected the plain name of a folder")
        return name


class StudyJson(RecordFile):
    """A study: its spec as plain values, and its runs, a start before what starts from it."""

    FILE: ClassVar[str] = "study.json"
    REMEDY: ClassVar[str] = "give the study's command again, which writes it anew"

    name: str
    command: str = ""
    question: str | None = None
    target: str | None = None
    spec: dict[str, Any] = {}
    runs: list[RunEntry]
