"""Who carries out a run: one process, whoever dies, sleeps or comes at the same moment."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from engine.study import lock as claim


def foreign(folder: Path, number: int = 1, age: float = 0.0) -> Path:
    """A claim of a process on another machine."""
    path = folder / f"claim.{number}"
    path.write_text(json.dumps({"host": "elsewhere", "machine": "x", "pid": 1, "began": 0.0, "since": "then"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_of_many_that_reach_for_a_run_one_gets_it(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def reach(_: int) -> claim.Claim | None:
        barrier.wait()
        return claim.take(tmp_path / "run")

    with ThreadPoolExecutor(8) as pool:
        got = [one for one in pool.map(reach, range(8)) if one is not None]
    assert len(got) == 1
    assert claim.take(tmp_path / "run") is None
    got[0].release()
    assert claim.holder(tmp_path / "run") is None
    again = claim.take(tmp_path / "run")
    assert again is not None
    again.release()


def test_a_holder_who_died_on_this_machine_is_known_at_once(tmp_path: Path) -> None:
    words = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from engine.study import lock as claim; "
    )
    words += f"claim.take(Path({str(tmp_path)!r})); print('held', flush=True); import time; time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    held = claim.holder(tmp_path)
    assert held is not None
    assert held.alive
    assert held.pid == process.pid
    assert claim.take(tmp_path) is None
    process.kill()
    process.communicate()
    taken = claim.take(tmp_path)
    assert taken is not None
    assert taken.number == 2
    taken.release()
    assert not list(tmp_path.glob("claim.*"))


def test_a_holder_elsewhere_is_alive_as_long_as_he_gives_signs_of_life(tmp_path: Path) -> None:
    foreign(tmp_path, age=claim.LOST - 10)
    assert claim.take(tmp_path) is None
    foreign(tmp_path, age=claim.LOST + 10)
    taken = claim.take(tmp_path)
    assert taken is not None
    taken.release()


def test_a_claim_that_is_only_half_written_counts(tmp_path: Path) -> None:
    (tmp_path / "claim.1").write_text('{"host": "el')
    assert claim.take(tmp_path) is None


def test_a_claim_gives_signs_of_life_and_ends_a_process_that_slept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(claim, "EVERY", 0.05)
    monkeypatch.setattr(claim.os, "_exit", ended.append)
    held = claim.take(tmp_path)
    assert held is not None
    os.utime(held.path, (0, 0))
    deadline = time.monotonic() + 10
    while held.path.stat().st_mtime < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held.path.stat().st_mtime > 1
    foreign(tmp_path, 2)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended[0] == 2
    held.release()
    assert (tmp_path / "claim.2").exists(), "the other's claim is not ours to remove"
