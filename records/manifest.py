"""manifest.json: what a checkpoint holds, and what it must match before a run goes on from it."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from records.folder import RecordFile

FORMAT: Final = 2  # 1: DeepSpeed's own files, which only as many processes as wrote them could load

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Bytes = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BadSteps(BaseModel):
    """Steps that were not taken, as their loss or a gradient was not finite, over all launches of a run."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    in_a_row: int = Field(0, ge=0)  # the last ones
    total: int = Field(0, ge=0)
    unlogged: int = Field(0, ge=0)  # of these, since the last row of the journal
    listed: int = Field(0, ge=0)  # bytes of bad_batches.jsonl that belong to the checkpoint


class Manifest(RecordFile):
    """Written last, when every file is on disk: a folder without it is no checkpoint. `zero` and `world` tell who wrote it;
    any other number of processes may load it at any other ZeRO stage."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    FILE: ClassVar[str] = "manifest.json"
    REMEDY: ClassVar[str] = "its checkpoint can't be used"
    format: Literal[2] = FORMAT
    step: int = Field(ge=0)
    journal: int = Field(ge=0)  # bytes of metrics.jsonl that belong to it
    data: str  # the digest of the pairs
    zero: int = Field(ge=0, le=3)
    world: int = Field(ge=1)  # processes
    spec: dict[str, Any]
    versions: dict[str, str]
    spent: dict[str, float]  # seconds and joules
    due: bool = False  # whether the evaluation at this step is still to be done
    bad: BadSteps | None = None  # None: written by a version that did not count over launches
    files: dict[FileName, tuple[Bytes, Sha256]] = Field(default_factory=dict)


def least_journal(folder: Path) -> int:
    """How many bytes the journal of a run has at least: those that belong to its newest checkpoint that can be read."""
    manifests = (Manifest.read_whole(path) for path in sorted(folder.glob("checkpoints/step-*"), reverse=True))
    return next((manifest.journal for manifest in manifests if manifest is not None), 0)
