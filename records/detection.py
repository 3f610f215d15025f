"""detection.json: how the pairs of a finished pre-training were scored, and how well that tells the poisoned ones."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from records.digests import changed_file, file_digest
from records.ending import FinishedJson
from records.folder import RecordFile
from records.json_file import damaged
from records.rows import Amount, Count
from records.scores import SCORES, read_scores

FOLDER = "detect"  # in the run's folder
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class DetectorResult(BaseModel):
    """One detector's scores. Numbers are of pairs with a score; those that need poison are empty where there is none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str
    kind: str  # "foreign" for another program's
    settings: dict[str, Any] = {}
    scored: Count
    flagged: Count
    poisoned_flagged: Count | None = None
    threshold: Number  # of the budget
    numbers: dict[str, Number] = {}  # measures/detectors/ranking.py: auroc, average_precision, fpr95, precision_0.01 ...
    attacks: dict[
        str, dict[str, Number]
    ] = {}  # the same for each attack's pairs against the clean ones, if there are several
    thresholds: dict[str, Number] = {}  # by share of all pairs: the least score within it
    curve: list[tuple[Share, Share]] = []  # (FPR, TPR), where no order gives it; older records have it beside one
    order: str = Field("", exclude_if=lambda text: not text)  # measures/detectors/order.py; empty of too many pairs
    edges: list[Number] = []  # first and last of the histogram's equal bins; older records have those between them too
    clean: list[Count] = []
    poisoned: list[Count] = []
    notes: dict[str, Number] = {}  # points, merged duplicates, recall of approximate neighbours
    seconds: Amount = 0.0
    twin: dict[
        str, Share
    ] = {}  # shares of the twin's pairs: at the threshold, by the budget's rule, at each of `thresholds`

    @model_validator(mode="after")
    def _one_histogram(self) -> Self:
        if len(self.clean) != len(self.poisoned) or self.clean and len(self.edges) < 2:
            raise ValueError("counts of its histogram that are not of the same bins")
        return self

    @property
    def bins(self) -> list[float]:
        """The edges of the histogram's bins, one more than there are bins; empty without one."""
        count = len(self.clean)
        return [self.edges[0] + (self.edges[-1] - self.edges[0]) * at / count for at in range(count + 1)] if count else []


class DetectionJson(RecordFile):
    """The scores of one run; `files` are the SHA-256 of what lies beside it, `asked` the spec's section, `foreign` the
    SHA-256 of the other programs' files that it names, by address."""

    FILE: ClassVar[str] = f"{FOLDER}/detection.json"
    REMEDY: ClassVar[str] = "delete it and detect again"

    run: str
    asked: dict[str, Any]
    weights: str  # their SHA-256
    pairs: Count
    poisoned: Count
    replaced: Count  # pairs that could not be decoded, for which the next one was encoded; they have no score
    encoding: Amount  # seconds
    processes: Count
    files: dict[str, str]
    foreign: dict[str, str] = Field({}, exclude_if=lambda files: not files)
    detectors: list[DetectorResult]
    twin: str | None = None  # the folder of the untouched twin whose shares the detectors tell

    def of(self, title: str) -> DetectorResult | None:
        """What a detector of that title found; None if there is none."""
        return next((one for one in self.detectors if one.title == title), None)


def scored_as(home: Path, asked: dict[str, Any]) -> bool:
    """Whether the pairs of the finished run in a folder are scored as is asked, by the weights that it has, and beside what
    other programs' files hold now."""
    found, end = DetectionJson.read_whole(home), FinishedJson.read_whole(home)
    if found is None or end is None:
        return False
    return (found.weights, found.asked) == (end.weights, asked) and changed_file(found.foreign) is None


def scores_in(home: Path, title: str) -> dict[str, float]:
    """A detector's scores of the pairs of the run in a folder, by key; Damaged if they are not what was written."""
    found, path = DetectionJson.read(home), home / FOLDER / SCORES
    if found is None or not path.is_file() or found.files.get(SCORES) != file_digest(path):
        raise damaged(path, f"its SHA-256 is not that in {DetectionJson.FILE}", DetectionJson.REMEDY)
    return {row.key: row.score for _, row in read_scores(path) if row.kind == title}
