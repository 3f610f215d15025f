"""Whatever ends a run early, on whichever rank: all ranks leave in time, with one exit code, after one sentence."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import forked
import pytest
from conftest import ROOT, antidote, environment, journals, settings
from disks import disk

SLOW = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # so much longer does the same work take on this machine now
LIMIT = round(9 * SLOW)  # seconds without progress, in these tests
SHORT = settings("pretrain.epochs=1", "clean=null")
FULL = "disk full"
LEFT = forked.HANGS  # seconds within which all ranks have started, met the fault and left


class Ending:
    """How a run ended that had a fault (tests/faults.py)."""

    def __init__(self, spec: Path, phase: str, fault: str, ranks: str, number: int, size: int, more: list[str]) -> None:
        words = [sys.executable, str(ROOT / "tests/faults.py"), phase, fault, ranks, str(number), "--spec", str(spec)]
        words += [*SHORT, *settings(f"machine.timeout_minutes={LIMIT / 60 if fault == 'STOP' else 30}"), *more]
        if size > 1:
            processes = forked.ranks(words, size, cwd=spec.parent, stdout=PIPE, stderr=PIPE)
        else:
            processes = [forked.Popen(words, cwd=spec.parent, stdout=PIPE, stderr=PIPE)]
        struck = [fault in ("STOP", "KILL") and str(rank) in ranks for rank in range(size)]
        left = [process for process, gone in zip(processes, struck, strict=True) if not gone]
        deadline = time.monotonic() + LEFT
        while any(process.poll() is None for process in left) and time.monotonic() < deadline:
            time.sleep(0.05)
        hangs = [process.poll() is None for process in left]
        for process in processes:
            process.kill()
        texts = ["".join(process.communicate()) for process in processes]
        lines = [line for text in texts for line in text.splitlines()]
        self.text = "\n".join(texts)
        assert not any(hangs), self.text
        self.codes = {process.wait() for process in left}
        self.sentences = [line for line in lines if re.match(r"error[: ]|stopped ", line)]
        self.advice = [line for line in lines if line.startswith("go on with: ")]


def ending(spec: Path, phase: str, fault: str, ranks: str, *more: str, number: int = 1, size: int = 2) -> Ending:
    """How it ended; fails if a rank hung, if ranks differ in their exit codes, or if not one sentence was said."""
    found = Ending(spec, phase, fault, ranks, number, size, list(more))
    assert len(found.codes) == 1, found.text
    assert len(found.sentences) == 1, found.text
    assert len(found.advice) <= 1, found.text
    assert ("Traceback" in found.text) == (fault == "defect"), found.text
    return found


NIGHT = pytest.mark.slow
LOST = [("0", "KILL"), *(pytest.param(*pair, marks=NIGHT) for pair in (("0", "STOP"), ("1", "STOP"), ("1", "KILL")))]


@pytest.mark.parametrize(("rank", "fault"), LOST)
def test_a_rank_that_stops_or_dies_is_named_by_the_other(spec: Path, rank: str, fault: str) -> None:
    found = ending(spec, "training", fault, rank, number=3)
    assert found.codes == {2}
    words = f"no progress for {LIMIT} s; waiting for rank {rank}" if fault == "STOP" else f"lost contact with rank {rank}"
    assert words in found.sentences[0]
    assert len(found.advice) == 1


@NIGHT
@pytest.mark.parametrize(
    "phase", ["index", "build", "first evaluation", "saving", "evaluation", "commit", "weights", "report"]
)
@pytest.mark.parametrize("fault", ["STOP", "KILL"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_is_named_in_whatever_phase_it_stops_or_dies(spec: Path, phase: str, fault: str, rank: str) -> None:
    if rank == "1" and phase in ("commit", "weights", "report"):
        pytest.skip("rank 0 alone does that")
    found = ending(spec, phase, fault, rank, number=2 if phase == "evaluation" else 1)
    assert found.codes == {2}
    assert f"rank {rank}" in found.sentences[0]


WRITES = ["saving", "commit", "journal", "weights", "report"]


@pytest.mark.parametrize(
    ("phase", "size", "rank"),
    [
        pytest.param(phase, size, rank, marks=() if (phase, size) == ("journal", 2) else NIGHT)
        for phase in WRITES
        for size, rank in ((1, "0"), (2, "0"), (2, "1"))
        if rank == "0" or phase == "saving"
    ],
)
def test_a_disk_that_is_full_for_one_rank_ends_all(spec: Path, phase: str, size: int, rank: str) -> None:
    found = ending(spec, phase, "full", rank, number=2 if phase in ("journal", "saving") else 1, size=size)
    assert found.codes == {2}
    assert FULL in found.sentences[0]
    assert len(found.advice) == 1


def test_a_defect_of_one_rank_ends_all_with_one_traceback(spec: Path) -> None:
    found = Ending(spec, "training", "defect", "1", 3, 2, [])
    assert found.codes == {1}
    assert found.text.count("KeyError: 'a defect'") == 1
    assert not found.advice


SIGNALS = [
    (phase, size, ranks)
    for phase in ("index", "build", "first evaluation", "training", "saving", "evaluation", "weights", "report")
    for size, ranks in ((1, "0"), (2, "01"), (2, "0"), (2, "1"))
    if "0" in ranks or phase not in ("weights", "report")
]
DAY = (("report", 1, "0"), ("first evaluation", 2, "1"))


@pytest.mark.parametrize(
    ("phase", "size", "ranks"), [pytest.param(*case, marks=() if case in DAY else NIGHT) for case in SIGNALS]
)
def test_sigterm_ends_every_phase_and_the_same_command_goes_on(spec: Path, phase: str, size: int, ranks: str) -> None:
    number = {"training": 3, "evaluation": 2}.get(phase, 1)
    found = ending(spec, phase, "TERM", ranks, number=number, size=size)
    assert found.codes == {143}
    assert len(found.advice) == 1
    saved = phase in ("training", "saving", "evaluation")
    assert found.sentences[0].startswith(
        "stopped and saved" if saved else "stopped between two runs" if phase == "weights" else "stopped by SIGTERM"
    )
    assert not list((spec.parent / "runs/tiny").glob("*/claim.*")), "given back"
    if (phase, size, ranks) not in DAY:
        again = antidote("--spec", str(spec), *SHORT, cwd=spec.parent, processes=size)
        assert again.returncode == 0, again.stderr
        assert ("goes on at step" in again.stderr) == saved


@NIGHT
@pytest.mark.parametrize(("rank", "number"), [("0", 17), ("1", 9)])
def test_a_stop_while_one_rank_waits_for_data_ends_all(spec: Path, rank: str, number: int) -> None:
    """The others are in the midst of a step, so nothing new is saved."""
    found = ending(spec, "reading", "outage", rank, number=number)
    assert found.codes == {143}
    assert "; it waited for data, and goes on from its newest checkpoint" in found.sentences[0]
    assert len(found.advice) == 1


# a disk that is really full


SIZES = [8, 40, 120, 300, 700, 1000, 1500, 2000, 2200, *range(2400, 3000, 100), *range(3000, 4001, 200)]


@pytest.mark.parametrize(
    ("kilobytes", "size"),
    [
        pytest.param(kilobytes, size, marks=() if (kilobytes, size) == (1500, 1) else NIGHT)
        for kilobytes in SIZES
        for size in (1, 2)
    ],
)
def test_a_study_on_a_disk_of_any_size_ends_in_a_sentence_and_goes_on(spec: Path, kilobytes: int, size: int) -> None:
    """Wherever the disk gets full; the same command goes on when there is space again."""
    with disk(spec.parent / "runs", kilobytes):
        out = antidote("--spec", str(spec), *SHORT, cwd=spec.parent, processes=size)
        assert "Traceback" not in out.stderr + out.stdout
        if out.returncode:
            assert out.returncode == 2, out.stderr
            assert out.stderr.count(FULL) == 1, out.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", spec.parent / "runs"], check=True)
        again = antidote("--spec", str(spec), *SHORT, cwd=spec.parent, processes=size)
        assert again.returncode == 0, again.stderr


def test_a_disk_ends_with_its_session(tmp_path: Path) -> None:
    """Killed or not, since it is the session's alone: the process that started the session does not see it."""
    with disk(tmp_path / "small", 8):
        assert str(tmp_path) in Path("/proc/self/mounts").read_text()
        assert str(tmp_path) not in Path(f"/proc/{os.getppid() or 1}/mounts").read_text()


def test_a_folder_that_is_read_only_is_named(spec: Path) -> None:
    with disk(spec.parent / "runs", 8):
        subprocess.run(["mount", "-o", "remount,ro", spec.parent / "runs"], check=True)
        out = antidote("--spec", str(spec), *SHORT, cwd=spec.parent)
    assert out.returncode == 2
    assert "Traceback" not in out.stderr
    assert re.search(r"^error: .*Read-only file system.*; ", out.stderr, re.MULTILINE)


@NIGHT
def test_a_run_killed_a_hundred_times_ends_with_the_bits_of_one_that_was_not(spec: Path) -> None:
    """SIGKILL at any moment after a new checkpoint; every third time before there is one."""
    more = settings("pretrain.epochs=10", "clean=null")
    words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(spec), *more]
    whole = spec.parent / "whole"
    whole.mkdir()
    shutil.copy(spec, whole)
    assert antidote("--spec", str(spec), *more, cwd=whole).returncode == 0
    study, chance, kills = spec.parent / "runs/tiny", random.Random(0), 0

    def newest() -> str:
        return max((path.name for path in study.glob("pretrain-*/checkpoints/step-*")), default="")

    while kills < 100:
        process, before = forked.Popen(words, cwd=spec.parent, env=environment(), stdout=DEVNULL, stderr=DEVNULL), newest()
        wait, deadline = kills % 3 > 0, time.monotonic() + forked.HANGS
        while wait and newest() == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.random() * (0.05 if wait else 2))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills == 100
    out = antidote("--spec", str(spec), *more, cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    assert journals(study) == journals(whole / "runs/tiny")
    ours, theirs = (next(folder.glob("pretrain-*/weights.safetensors")) for folder in (study, whole / "runs/tiny"))
    assert ours.read_bytes() == theirs.read_bytes()
