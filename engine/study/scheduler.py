"""What is left to do of a study, and which run comes next: read from the run folders alone, so that it is the same for every
process that joins."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs.plan import Run, runs
from configs.spec import Loaded
from configs.sweep import Optuna
from engine.study import lock as claim
from engine.study.lock import Claim
from records.ending import FailedJson, PrunedJson, measured_as
from records.folder import finished

State = Literal["ended", "failed", "blocked", "open"]


@dataclass
class Scheduler:
    """The runs of a study as one process sees them; `since` is when it began, by the clock of the study's folder."""

    loaded: Loaded
    folder: Path
    stage: str | None
    since: float = 0.0
    runs: list[Run] = field(default_factory=list)
    over: set[str] = field(default_factory=set)  # folders of runs that ended
    proposals: int = 0  # files of a search that `runs` knows

    @classmethod
    def of(cls, loaded: Loaded, folder: Path, stage: str | None) -> "Scheduler":
        """The agenda as it stands now."""
        agenda = cls(loaded, folder, stage)
        agenda.renew()
        return agenda

    @property
    def whole(self) -> "Scheduler":
        """The same of all stages."""
        return self if self.stage is None else Scheduler.of(self.loaded, self.folder, None)

    def renew(self) -> None:
        """Takes in what a search has proposed since."""
        known = len(list((self.folder / "search").glob("*.json")))
        if self.runs and known == self.proposals:
            return
        points, self.proposals = list(self.loaded.points), known
        if isinstance(self.loaded.spec.sweep.search, Optuna):
            from engine.study.search import proposed

            points += proposed(self.loaded, self.folder)
        self.runs = runs(points, self.stage)

    def state(self, run: Run) -> State:
        """How far a run has come. A run that failed before this process began is open again."""
        folder = self.folder / run.folder
        if run.folder in self.over or self._ended(run, folder):
            self.over.add(run.folder)
            return "ended"
        if (folder / FailedJson.FILE).is_file() and (folder / FailedJson.FILE).stat().st_mtime >= self.since:
            return "failed"
        if run.start is not None and not finished(self.folder / run.start.folder):
            before = self.state(run.start) if run.start in self.runs else "open"
            return "blocked" if before in ("failed", "blocked") else "open"
        return "open"

    def _ended(self, run: Run, folder: Path) -> bool:
        stops = run.stage == "clean" and self.loaded.spec.sweep.stop is not None
        return measured_as(folder, run.measured) or stops and (folder / PrunedJson.FILE).is_file()

    def ready(self, run: Run) -> bool:
        """Whether what it starts from is there."""
        return run.start is None or finished(self.folder / run.start.folder)

    def next(self) -> tuple[Run, Claim] | Literal["wait", "none"]:
        """A run that this process now holds; `wait` while others carry out what is left; `none` when nothing is left."""
        while True:
            waiting = False
            for run in self.runs:
                if self.state(run) != "open":
                    continue
                waiting = True
                if not self.ready(run):
                    continue
                folder = self.folder / run.folder
                held = claim.take(folder)
                if held is None:
                    continue
                if self.state(run) != "open":  # ended while we reached for it
                    held.release()
                    continue
                if held.number > claim.DEATHS:
                    words = f"its process died {claim.DEATHS} times; look at its log and the machine's memory"
                    FailedJson.now(words).write(folder)
                    held.release()
                    continue
                return run, held
            if waiting:
                return "wait"
            if not self.extended():
                return "none"

    def extended(self) -> bool:
        """Whether a search has proposed further runs, now that those before have ended."""
        if not isinstance(self.loaded.spec.sweep.search, Optuna) or self.stage == "pretrain":
            return False
        from engine.study.search import propose

        if not propose(self.loaded, self.folder):
            return False
        self.renew()
        return True

    def count(self) -> dict[State, int]:
        """How many runs are in each state."""
        out: dict[State, int] = {"ended": 0, "failed": 0, "blocked": 0, "open": 0}
        for run in self.runs:
            out[self.state(run)] += 1
        return out

    def failures(self) -> Iterable[tuple[Run, str]]:
        """The runs that failed since this process began, and why; those that need them."""
        for run in self.runs:
            state = self.state(run)
            if state == "failed":
                failure = FailedJson.read(self.folder / run.folder)
                yield run, failure.message if failure else "?"
            elif state == "blocked":
                yield run, "what it starts from failed"


def siblings(agenda: Scheduler, run: Run) -> list[Path]:
    """The folders of the other cleaning runs that start where this one does."""
    return [
        agenda.folder / one.folder for one in agenda.runs if one.stage == "clean" and one.origin == run.origin and one != run
    ]
