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

from engine.study import lock


def foreign(folder: Path, number: int = 1, age: float = 0.0) -> Path:
    """The lock of a process on another machine."""
    path = folder / f"claim.{number}"
    path.write_text(json.dumps({"host": "elsewhere", "machine": "x", "pid": 1, "began": 0.0, "since": "then"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_of_many_that_try_to_acquire_a_run_one_does(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def acquire(_: int) -> lock.Lock | None:
        barrier.wait()
        return lock.acquire(tmp_path / "run")

    with ThreadPoolExecutor(8) as pool:
        locks = [each for each in pool.map(acquire, range(8)) if each is not None]
    assert len(locks) == 1
    assert lock.acquire(tmp_path / "run") is None
    locks[0].release()
    assert lock.owner(tmp_path / "run") is None
    again = lock.acquire(tmp_path / "run")
    assert again is not None
    again.release()


def test_an_owner_who_died_on_this_machine_is_known_at_once(tmp_path: Path) -> None:
    words = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from engine.study import lock; "
    words += f"lock.acquire(Path({str(tmp_path)!r})); print('held', flush=True); import time; time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    owned = lock.owner(tmp_path)
    assert owned is not None
    assert owned.alive
    assert owned.pid == process.pid
    assert lock.acquire(tmp_path) is None
    process.kill()
    process.communicate()
    taken = lock.acquire(tmp_path)
    assert taken is not None
    assert taken.number == 2
    taken.release()
    assert not list(tmp_path.glob("claim.*"))


def test_an_owner_elsewhere_is_alive_as_long_as_it_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(tmp_path, age=lock.STALE - 10)
    assert lock.acquire(tmp_path) is None
    foreign(tmp_path, age=lock.STALE + 10)
    assert lock.acquire(tmp_path) is None, "not yet: its age is told by a clock that may have jumped"
    monkeypatch.setattr(lock, "WATCH", 0.2)
    time.sleep(0.3)
    taken = lock.acquire(tmp_path)
    assert taken is not None
    taken.release()


def test_a_folder_s_clock_that_jumps_ends_no_living_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours, forth or back, while it gives signs of life; when these stop, another takes over in time."""
    monkeypatch.setattr(lock, "WATCH", 0.3)
    clock = lock.folder_time(tmp_path)
    for jump in (7200, -7200, 3600):
        monkeypatch.setattr(lock, "folder_time", lambda folder, jump=jump: clock + jump)
        for beat in range(10):
            foreign(tmp_path, age=-0.01 * beat)
            assert lock.acquire(tmp_path) is None
            time.sleep(0.05)
    time.sleep(0.3)
    taken = lock.acquire(tmp_path)
    assert taken is not None
    taken.release()


def test_deaths_count_while_a_run_comes_no_further(tmp_path: Path) -> None:
    """Owners of this machine that died, each after the run stood where it is said to have stood."""
    dead = lock.LockFile.of_this_process().model_copy(update={"pid": 2**22 + 1})
    for stood, deaths, stands, counted in (
        ("", 0, "", 1), ("", 3, "", 4), ("", 4, "step-1", 0), ("step-1", 0, "step-1", 1), ("step-1", 4, "step-2", 0),
    ):  # fmt: skip
        file = dead.model_copy(update={"deaths": deaths, "progress": stood})
        (tmp_path / "claim.7").write_text(file.model_dump_json())
        taken = lock.acquire(tmp_path, stands)
        assert taken is not None
        assert (taken.number, taken.deaths) == (8, counted)
        kept = lock.LockFile.model_validate_json(taken.path.read_bytes())
        assert (kept.deaths, kept.progress) == (counted, stands)
        taken.release()


def test_a_file_of_an_earlier_version_counts(tmp_path: Path) -> None:
    """Its name and its fields, as processes that are at work in a study may have written it."""
    fields = ("host", "machine", "pid", "began")
    this = lock.LockFile.of_this_process().model_dump()
    (tmp_path / "claim.3").write_text(json.dumps({**{name: this[name] for name in fields}, "since": "2026-10-01 12:00:00"}))
    owner = lock.owner(tmp_path)
    assert owner is not None
    assert (owner.number, owner.host, owner.pid, owner.alive) == (3, this["host"], os.getpid(), True)
    assert lock.acquire(tmp_path) is None
    owned = lock.acquire(tmp_path / "other")
    assert owned is not None
    assert set(json.loads((tmp_path / "other/claim.1").read_text())) == {*fields, "since", "deaths", "progress", "sha256"}
    owned.release()


def test_a_lock_that_is_only_half_written_counts(tmp_path: Path) -> None:
    (tmp_path / "claim.1").write_text('{"host": "el')
    assert lock.acquire(tmp_path) is None


def test_a_lock_gives_signs_of_life_and_ends_a_process_that_slept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock.os, "_exit", ended.append)
    owned = lock.acquire(tmp_path)
    assert owned is not None
    os.utime(owned.path, (0, 0))
    deadline = time.monotonic() + 300
    while owned.path.stat().st_mtime < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owned.path.stat().st_mtime > 1
    foreign(tmp_path, 2)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended[0] == 2
    owned.release()
    assert (tmp_path / "claim.2").exists(), "the other's lock is not ours to remove"
