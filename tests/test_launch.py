"""Jobs of a study on this machine: how many, on which GPUs, by which command; runs of several processes."""

import json
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SELDOM, antidote, journals, settings

from configs.sweep import Sweep
from engine.study import launch
from engine.study.command import StudyCommand
from engine.study.launch import worker_slots, worker_words
from engine.study.status import LiveView, RunStatus, StatusReader
from engine.study.time_left import time_left
from records.study_json import RunEntry, StudyJson


@pytest.mark.parametrize(
    ("sweep", "gpus", "visible", "runs", "expected"),
    [
        ({}, 4, None, 9, [["0"], ["1"], ["2"], ["3"]]),
        ({}, 4, "4,6,7,9", 9, [["4"], ["6"], ["7"], ["9"]]),
        ({"processes": 2}, 5, None, 9, [["0", "1"], ["2", "3"]]),
        ({}, 4, None, 2, [["0"], ["1"]]),
        ({"jobs": 3}, 2, None, 9, [["0"], ["1"], ["0"]]),
        ({}, 0, None, 9, [[], [], []]),
        ({"processes": 2}, 0, None, 9, [[]]),
        ({"executor": "slurm"}, 0, None, 9, [[]] * 9),
        ({"executor": "slurm", "jobs": 2}, 0, None, 9, [[], []]),
    ],
)
def test_jobs_are_as_many_as_gpus_or_cores(
    sweep: dict[str, Any],
    gpus: int,
    visible: str | None,
    runs: int,
    expected: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "cores", lambda: 3)
    monkeypatch.setattr(launch, "MEMORY", 1.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.gpus for slot in worker_slots(Sweep(**{"executor": "local", **sweep}), runs)] == expected


def test_a_job_is_the_command_of_the_study_itself() -> None:
    options = Namespace(spec="x.yaml", set=["clean.epochs=2"], stage="clean")
    single = worker_words(options, Sweep(), 3, 29700)
    assert single[1:] == [
        str(ROOT / "engine/run.py"), "--spec", "x.yaml", "--set", "clean.epochs=2", "--stage", "clean",
        "--set", "sweep.executor=here", "--set", "machine.threads=3",
    ]  # fmt: skip
    several = worker_words(options, Sweep(processes=4), None, 29700)
    assert several[0].endswith("deepspeed")
    assert several[1:6] == ["--num_gpus", "4", "--master_port", "29700", str(ROOT / "engine/run.py")]


def test_the_process_that_waits_for_a_worker_needs_no_torch() -> None:
    script = f"import sys, {StudyCommand.__module__}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_several_processes_pre_train_together_then_runs_of_several_are_spread(spec: Path, tmp_path: Path) -> None:
    """DeepSpeed's launcher with two processes; their cleaning runs, too, are jobs of two. As one process does it all."""
    (tmp_path / "one").mkdir()
    sweep = {"clean.optimizer.rate": [1e-4, 1e-3]}
    alone = antidote("--spec", str(spec), *SELDOM, *settings(f"sweep={json.dumps(sweep)}"), cwd=tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    assert "2 of 3 runs done" in alone.stderr, "how far it is, after each run"
    more = {**sweep, "executor": "local", "jobs": 1, "processes": 2}
    out = antidote("--spec", str(spec), *SELDOM, *settings(f"sweep={json.dumps(more)}"), cwd=tmp_path, processes=2)
    assert out.returncode == 0, out.stderr
    study = tmp_path / "runs/tiny"
    cards = [json.loads(path.read_text()) for path in study.glob("*/card.json")]
    assert [card["processes"] for card in cards] == [2, 2, 2]
    assert len(list((study / ".jobs").glob("*_log.out"))) == 1, "one job took both runs"
    expected = journals(tmp_path / "one/runs/tiny")
    for name, rows in journals(study).items():
        losses = [[row["loss"] for row in of if row["kind"] == "step"] for of in (rows, expected[name])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_on_a_terminal_a_live_table_shows_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    entries = [RunEntry(run=f"clean-{i}", stage="clean", title=f"clean [{i}]", pretrain_objective="mmcl") for i in range(40)]
    StudyJson(name="tiny", runs=entries).write(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    view = LiveView(tmp_path, None)
    view.show(2)
    view.show(2)
    view.end()
    said = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).split())
    assert "0 of 40 runs done, 0 running, 40 left" in said
    assert "clean [3]" in said
    assert "and 10 more" in said


@pytest.mark.parametrize(
    ("others", "seconds", "unknown"),
    [
        ([], 90 / 2, 3),  # half of 180 s; nothing tells how long a cleaning takes
        ([("clean", "PAR", "finished", 40.0)], (90 + 40 + 40 + 40) / 2, 0),  # another cleaner's length
        ([("clean", "SSL", "finished", 20.0), ("clean", "PAR", "finished", 40.0)], (90 + 20 + 40 + 30) / 2, 0),
        ([("pretrain", "mmcl", "finished", 300.0)], 150 / 2, 3),  # what ended counts before what goes on
        ([("twin", "mmcl", "to do", None)], (90 + 180) / 2, 3),  # a twin is as long as the model it is the twin of
        ([("pretrain", "slip", "to do", None), ("clean", "PAR", "failed", None)], (90 + 180) / 2, 3),
    ],
)  # fmt: skip
def test_the_time_left_is_that_of_runs_of_the_same_kind(others: list[Any], seconds: float, unknown: int) -> None:
    going = RunStatus("p", "", "pretrain", None, state="running", step=50, steps=100, batch=90, rate=50.0, objective="mmcl")
    waiting = [RunStatus(name, "", "clean", "p", state="waiting", objective=name) for name in ("SSL", "PAR", "shrink")]
    rest = [RunStatus(f"r{i}", "", stage, None, state=state, seconds=took, objective=what)
            for i, (stage, what, state, took) in enumerate(others)]  # fmt: skip
    assert time_left([going, *waiting, *rest], 2) == pytest.approx((seconds, unknown))


def test_one_stage_alone_counts_its_own_runs(tmp_path: Path) -> None:
    stages = ("pretrain", "twin", "clean", "clean")
    StudyJson(
        name="tiny",
        runs=[RunEntry(run=f"{stage}-{i}", stage=stage, pretrain_objective="mmcl") for i, stage in enumerate(stages)],
    ).write(tmp_path)
    lines = [StatusReader(tmp_path, stage).read().line(1) for stage in (None, "pretrain", "clean")]
    assert [line.split(" runs")[0] for line in lines] == ["0 of 4", "0 of 2", "0 of 2"]
