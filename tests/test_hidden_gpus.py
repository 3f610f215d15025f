"""Tests see no GPU, but for a session of gpu tests alone (tests/conftest.py)."""

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ROOT, environment, sees_gpus

SEEN = "import os, torch; print(repr(os.environ['CUDA_VISIBLE_DEVICES']), torch.cuda.device_count())"
PLUGIN = "import os\ndef pytest_sessionstart(session): print('SEES', os.environ['CUDA_VISIBLE_DEVICES'], 'END')\n"


@pytest.mark.parametrize("marks", ["gpu", "gpu and not slow", "slow and gpu"])
def test_a_session_of_gpu_tests_alone_sees_gpus(marks: str) -> None:
    assert sees_gpus(marks)


@pytest.mark.parametrize("marks", ["", "not slow", "slow or not slow", "not gpu", "gpu or slow"])
def test_other_sessions_see_none(marks: str) -> None:
    assert not sees_gpus(marks)


def test_no_gpu_is_seen_here_nor_in_a_fork() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    done = forked.run([sys.executable, "-c", SEEN], 60)
    assert done.stdout == "'' 0\n", done.stderr


@pytest.mark.parametrize(
    ("words", "seen"), [([], ""), (["-m", "gpu"], "7"), (["-m", "gpu", "--gpu-tests-on", "cpu"], "")]
)  # fmt: skip
def test_gpus_are_hidden_before_a_session_begins(tmp_path: Path, words: list[str], seen: str) -> None:
    """Where its environment shows number 7."""
    (tmp_path / "probe.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "probe", "--collect-only", *words, "tests/test_interval.py"]
    env = environment(CUDA_VISIBLE_DEVICES="7", PYTHONPATH=str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert f"SEES {seen} END" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_gpu_test_runs_on_a_cpu() -> None:
    """So that none of them fails on its first GPU by a name that is gone."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--gpu-tests-on", "cpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" in done.stdout  # the loss's cores that only GPUs have
    assert " passed" in done.stdout
