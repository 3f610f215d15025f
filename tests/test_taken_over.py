"""Where a run was done that a study took over: said in its finished.json, by every reader."""

import re
from pathlib import Path

import damage
import pytest
from submissions import submission

from configs.spec import load
from engine.estimate.dry_run import dry_run
from engine.estimate.gpus import Assumed
from engine.study.reuse import reuse_finished_runs
from engine.study.scheduler import Scheduler
from engine.training.inputs import StudyInputs
from records.card import Card
from records.digests import file_digest
from records.ending import FinishedJson, TakenOver, verify_run
from records.folder import WEIGHTS
from report.submission import read_submission, write_packed


@pytest.mark.parametrize("joules", [None, 7.5])
def test_a_run_says_which_study_did_it_however_often_it_is_taken_over(
    spec: Path, tmp_path: Path, joules: float | None
) -> None:
    loaded, runs = load(spec), tmp_path / "runs"
    damage.make(runs / "main", loaded)
    run = Scheduler.of(loaded, runs / "main", None).runs[0]
    first = runs / "main" / run.folder
    end = FinishedJson.read(first)
    assert end is not None
    end = end.model_copy(update={"joules": joules})
    end.write(first)
    before = (first / "finished.json").read_bytes()
    assert b"taken_over" not in before
    for name in ("b", "a"):  # the last finds it in the study that took it over, too
        (runs / name).mkdir()
        assert [one for one, _ in reuse_finished_runs([run], runs / name)] == [run]
        mark = TakenOver(study="main", seconds=end.seconds, joules=joules)
        assert FinishedJson.read(runs / name / run.folder) == end.model_copy(update={"taken_over": mark})
        verify_run(runs / name / run.folder)
        written = (runs / name / run.folder / "finished.json").read_bytes()
        assert reuse_finished_runs([run], runs / name) == []
        assert (runs / name / run.folder / "finished.json").read_bytes() == written
    assert (first / "finished.json").read_bytes() == before
    assert (runs / "a" / run.folder / WEIGHTS).samefile(first / WEIGHTS)


def test_a_dry_run_tells_what_is_finished_and_what_another_study_has_finished(spec: Path, tmp_path: Path) -> None:
    def plan(study: str, *sets: str) -> str:
        loaded, machine = load(spec, list(sets)), Assumed(1, None)
        shared = StudyInputs(runs / study, machine.world, spec.parent)
        return " ".join(dry_run(loaded, Scheduler.of(loaded, runs / study, None).runs, shared, machine).split())

    loaded, runs = load(spec), tmp_path / "runs"
    assert "finished" not in plan("new") + plan("main")
    damage.make(runs / "main", loaded)  # a pre-training that is finished and a cleaning that is not
    first = Scheduler.of(loaded, runs / "main", None).runs[0]
    assert (plan("main").count("finished"), plan("main").count("finished in main")) == (1, 0)
    assert "finished" not in plan("new"), "the card that stands there tells of other pairs"
    home = runs / "main" / first.folder
    card, end = Card.read(home), FinishedJson.read(home)
    assert card is not None
    assert end is not None
    now = StudyInputs(runs / "new", Assumed(1, None).world, spec.parent).pairs.of(first).index.digest
    card.model_copy(update={"data_digest": now}).write(home)
    end.model_copy(update={"files": {**end.files, Card.FILE: file_digest(home / Card.FILE)}}).write(home)
    assert plan("new").count("finished in main") == 1
    for study in ("main", "new"):
        assert re.search(r"in all \S+ GPU-hours; still to do: \S+ for 1 run ", plan(study))
    assert "still to do" not in plan("new", "machine.adopt=false")
    assert "finished" not in plan("new", "machine.precision=bf16"), "it was made in fp32"
    (runs / "new" / first.folder).mkdir(parents=True)  # begun here
    assert "finished" not in plan("new")
    (runs / "main" / first.folder / "spec.json").write_text("{}")
    assert "finished" not in plan("other")


def test_a_run_that_was_taken_over_is_packed_with_its_mark(tmp_path: Path) -> None:
    folder = submission(tmp_path / "second", seeds=[0])
    home = next(folder.glob("pretrain-*"))
    end = FinishedJson.read(home)
    assert end is not None
    mark = TakenOver(study="main", seconds=end.seconds)
    end.model_copy(update={"taken_over": mark}).write(home)
    write_packed(folder, tmp_path / "second.tar.xz")
    for given in (folder, tmp_path / "second.tar.xz"):
        ends = {record.run.run: record.end for record in read_submission(given).study.records}
        marks = {name: one.taken_over for name, one in ends.items() if isinstance(one, FinishedJson) and one.taken_over}
        assert marks == {home.name: mark}
