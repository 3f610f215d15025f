"""What is left to do of a study, and which run comes next: read from the run folders alone, so that it is the same for every
process that joins."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs.plan import Run, runs
from configs.spec import Loaded
from configs.sweep import Optuna
from engine.persistence.choice import Group, chosen, groups
from engine.persistence.probes import probes, twin_of
from engine.study import lock
from engine.study.lock import Lock
from records.detection import scored_as
from records.ending import FailedJson, PrunedJson, measured_as
from records.folder import finished
from records.manifest import Manifest
from records.study_json import StudyJson

State = Literal["ended", "failed", "blocked", "open"]


@dataclass
class Scheduler:
    """The runs of a study as one process sees them; `since` is when it began, by the clock of the study's folder."""

    loaded: Loaded
    folder: Path
    stage: str | None
    since: float = 0.0
    runs: list[Run] = field(default_factory=list)
    planned: frozenset[Run] = frozenset()  # the same, to ask for one of them
    ended: set[str] = field(default_factory=set)  # folders of runs that ended
    proposals: frozenset[tuple[str, int]] = frozenset()  # files of a search that `runs` knows, and when they changed
    probed: set[Group] = field(default_factory=set)  # of what a cleaned model was chosen, whose probes `runs` has

    @classmethod
    def of(cls, loaded: Loaded, folder: Path, stage: str | None) -> "Scheduler":
        """The study as it stands now."""
        scheduler = cls(loaded, folder, stage)
        scheduler.refresh()
        return scheduler

    @property
    def all_stages(self) -> "Scheduler":
        """The same of all stages."""
        return self if self.stage is None else Scheduler.of(self.loaded, self.folder, None)

    def refresh(self) -> None:
        """Takes in what a search has proposed since, and what probes the cleaned models of those starts and cleaners whose
        cleanings have ended since."""
        proposals = self._proposals()
        if not self.runs or proposals != self.proposals:
            self._list_runs(proposals)
            self.probed = set()
        if fresh := self._probes():
            self.probed |= fresh.keys()
            known = {run.folder for run in self.runs}
            self.runs += {run.folder: run for runs in fresh.values() for run in runs if run.folder not in known}.values()
            self.planned = frozenset(self.runs)

    def _list_runs(self, proposals: frozenset[tuple[str, int]]) -> None:
        points, self.proposals = list(self.loaded.points), proposals
        if isinstance(self.loaded.spec.sweep.search, Optuna):
            from engine.study.search import proposed

            points += proposed(self.loaded, self.folder)
        self.runs = runs(points, self.stage, self.loaded.places)
        self.planned = frozenset(self.runs)

    def _probes(self) -> dict[Group, list[Run]]:
        """Of each start and cleaner whose cleanings have ended, and were not chosen from so far: what probes the chosen."""
        section = self.loaded.spec.after
        if section is None or self.stage == "pretrain" or not self._search_is_over():
            return {}
        planned = [run for run in self.runs if run.after is None]
        out: dict[Group, list[Run]] = {}
        for group, members in groups(planned).items():
            if group in self.probed or not all(self._has_ended(run) for run in members):
                continue
            best = chosen(members, self.folder, section)
            twin = None if best is None else twin_of(best, planned)
            if twin is None or self._has_ended(twin):
                out[group] = [] if best is None else probes(best, twin, self.folder)
        return out

    def _has_ended(self, run: Run) -> bool:
        if run.folder not in self.ended and self._ended(run, self.folder / run.folder):
            self.ended.add(run.folder)
        return run.folder in self.ended

    def _search_is_over(self) -> bool:
        """Whether no further cleaning will be proposed."""
        if not isinstance(self.loaded.spec.sweep.search, Optuna):
            return True
        from engine.study.search import is_over

        return is_over(self.loaded, self.folder)

    def _proposals(self) -> frozenset[tuple[str, int]]:
        files = set()
        for path in (self.folder / "search").glob("*.json"):
            with suppress(FileNotFoundError):  # another process sets it aside
                files.add((path.name, path.stat().st_mtime_ns))
        return frozenset(files)

    def state(self, run: Run) -> State:
        """How far a run has come. A run that failed before this process began is open again."""
        folder = self.folder / run.folder
        if self._has_ended(run):
            return "ended"
        failure = folder / FailedJson.FILE
        if failure.is_file() and failure.stat().st_mtime >= self.since:
            return "failed"
        if run.needs is not None and not self.ready(run):
            first = self.state(run.needs) if run.needs in self.planned else "open"
            return "blocked" if first in ("failed", "blocked") else "open"
        return "open"

    def _ended(self, run: Run, folder: Path) -> bool:
        prunes = run.stage == "clean" and self.loaded.spec.sweep.stop is not None
        measured = measured_as(folder, run.measured) and (run.detect is None or scored_as(folder, run.detect.asked))
        return measured or prunes and PrunedJson.read(folder) is not None

    def ready(self, run: Run) -> bool:
        """Whether what it starts from is there, or the scores that say what it leaves out."""
        if (scored := run.scored) is not None:
            home = self.folder / scored.folder  # of one that ended the scores, whose file is long, are not read at each look
            return scored.folder in self.ended or scored.detect is not None and scored_as(home, scored.detect.asked)
        return run.start is None or finished(self.folder / run.start.folder)

    def next(self) -> tuple[Run, Lock] | Literal["wait", "none"]:
        """A run that this process now owns; `wait` while others carry out what is left; `none` when nothing is left."""
        while True:
            self.refresh()
            any_open = False
            for run in self.runs:
                if self.state(run) != "open":
                    continue
                any_open = True
                if self.ready(run) and (owned := self._acquire(run)) is not None:
                    return run, owned
            if any_open:
                return "wait"
            before = len(self.runs)
            self.refresh()
            if len(self.runs) == before and not self.search_further():
                return "none"

    def _acquire(self, run: Run) -> Lock | None:
        """The lock of an open run; None if another process owns it, ended it a moment ago, or too many died of it."""
        folder = self.folder / run.folder
        owned = lock.acquire(folder, _progress(folder))
        if owned is None:
            return None
        is_open = self.state(run) == "open"
        if is_open and owned.deaths < lock.DEATHS:
            return owned
        if is_open:
            FailedJson.now(
                f"its process died {lock.DEATHS} times without coming further; look at its log and the machine's memory"
            ).write(folder)
        owned.release()
        return None

    def progress(self) -> list[str]:
        """How far the runs have come that nothing takes back."""
        return ["ended" if self.state(run) == "ended" else _progress(self.folder / run.folder) for run in self.runs]

    def search_further(self) -> bool:
        """Whether a search has proposed further runs, now that those before have ended."""
        if not isinstance(self.loaded.spec.sweep.search, Optuna) or self.stage == "pretrain":
            return False
        from engine.study.search import propose

        if not propose(self.loaded, self.folder):
            return False
        self.refresh()
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
                failure = FailedJson.read_whole(self.folder / run.folder)
                yield run, failure.message if failure else "?"
            elif state == "blocked":
                yield run, "what it starts from failed" if run.start else "the run whose scores it waits for failed"

    def siblings(self, run: Run) -> list[Path]:
        """The folders of the other cleaning runs that start where this one does."""
        return [
            self.folder / other.folder
            for other in self.runs
            if other.stage == "clean" and other.origin == run.origin and other != run
        ]

    def write_study_json(self, command: str) -> None:
        """Writes what is asked and the runs that answer it, with the command that goes on with them."""
        spec = self.loaded.spec
        StudyJson(
            name=spec.name,
            command=command,
            question=spec.question,
            target=spec.attack.target,
            spec=spec.model_dump(mode="json"),
            runs=[run.entry() for run in self.all_stages.runs],
        ).write(self.folder)


def _progress(folder: Path) -> str:
    """How far a run has come that nothing takes back: the name of its newest checkpoint."""
    return max((path.parent.name for path in folder.glob(f"checkpoints/step-*/{Manifest.FILE}")), default="")
