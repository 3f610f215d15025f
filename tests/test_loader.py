"""Loader workers stay within memory, hand over errors, and end."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children, get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_pipeline import index, pairs_of

from configs.plan import runs
from configs.spec import load
from data import loader
from data.augmentation.augment import Augment
from data.loader import AHEAD, BUDGET, Workers, loaded
from data.refusal import UserError
from data.shards import Index
from engine.distributed.world import World
from engine.training import inputs
from engine.training.inputs import StudyInputs, prepare_inputs

MIB = 1 << 20
ONE = World(0, 1, 0, 1, torch.device("cpu"))
__all__ = ["index"]


def memory(monkeypatch: pytest.MonkeyPatch, free: int, whole: int) -> None:
    """A /dev/shm of that many bytes."""
    monkeypatch.setattr(loader.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_blocks=whole, f_frsize=1))


@pytest.mark.parametrize("workers", [1, 3, 8, 14, 62])
@pytest.mark.parametrize("item", [1, 9 * MIB, 154 * MIB, 308 * MIB, 1500 * MIB])
@pytest.mark.parametrize("sharing", [1, 8])
def test_what_is_in_flight_stays_within_the_budget_and_half_of_the_shared_memory(
    monkeypatch: pytest.MonkeyPatch, workers: int, item: int, sharing: int
) -> None:
    for whole in (1 << 36, 1 << 33):
        memory(monkeypatch, whole - 5 * MIB, whole)
        room = min(BUDGET, (whole - 5 * MIB) // 2, whole // sharing // 2)
        if 2 * item > room:
            with pytest.raises(UserError, match="start the container with --shm-size=.*g, or set machine.workers to 0"):
                Workers(workers, sharing).ahead(item)
            continue
        number, each = Workers(workers, sharing).ahead(item)
        assert 1 <= number <= workers
        assert 1 <= each <= AHEAD
        assert (number * each + 1) * item <= room, "one more is in use"
        assert number == workers or (number + 2) * item > room, "as many as there is room for"
        assert each == AHEAD or (number * (each + 1) + 1) * item > room


def test_a_container_s_shared_memory_is_refused_in_one_sentence_or_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 64 * MIB, 64 * MIB)
    assert Workers(8).ahead(4 * MIB) == (7, 1)
    assert Workers(0).ahead(1 << 40) == (0, 0)
    with pytest.raises(UserError) as caught:
        Workers(8, 2).ahead(154 * MIB)
    assert str(caught.value) == (
        "/dev/shm has 32 MiB for this process, but its loader workers hand over batches of 154 MiB through half of it and "
        "need room for two at least; start the container with --shm-size=6g, or set machine.workers to 0"
    )
    memory(monkeypatch, 6 << 30, 6 << 30)
    assert Workers(8, 2).ahead(154 * MIB) == (8, 1), "what it asks for is enough"
    monkeypatch.setattr(loader, "SHARED", Path("/nowhere"))
    monkeypatch.undo()
    monkeypatch.setattr(loader, "SHARED", Path("/nowhere"))
    assert Workers(4).ahead(MIB) == (4, AHEAD)


@pytest.mark.parametrize("augment", ["autoaugment", "simclr", "none"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_s_bytes_are_known_before_it_is_read(index: Index, augment: Any, ranks: int) -> None:
    pairs = pairs_of(index, 0, ranks, (2, 2), augment=Augment(synonyms="none", image=augment))
    batch = pairs[1, 0]
    parts = [batch.images, batch.tokens, batch.samples, batch.poisoned, *([] if batch.drawn is None else [batch.drawn])]
    assert sum(part.nbytes for part in parts) <= pairs.batch_bytes <= 2 * batch.images.nbytes


def test_workers_take_the_rank_s_share_of_the_cores_but_two(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a launcher gives every rank all cores, or each its own."""
    loaded_ = load(spec, ["machine.workers=auto"]).spec
    for cores, elsewhere, expected in (
        (range(64), [range(64)] * 3, 14), (range(16), [range(16, 32)] * 3, 14), (range(2), [], 1), (range(224), [], 222),
    ):  # fmt: skip
        monkeypatch.setattr(inputs.os, "sched_getaffinity", lambda pid, cores=cores: set(cores))
        others = [(inputs.gethostname(), sorted(own)) for own in elsewhere] + [("another", sorted(cores))]
        monkeypatch.setattr(inputs.collectives, "gather_objects", lambda mine, others=others: [mine, *others])
        gpu = World(0, 4, 0, 4, torch.device("cuda", 0))
        shared = StudyInputs(tmp_path, gpu)
        assert shared.workers(loaded_) == Workers(expected, 4)
        assert shared.workers(load(spec, ["machine.workers=5"]).spec) == Workers(5, 4)
        assert StudyInputs(tmp_path, World(0, 1, 0, 1, torch.device("cpu"))).workers(loaded_) == Workers(0, 1)


def test_shared_memory_is_asked_for_before_a_run_trains(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For batches of 64 KiB, and for evaluation's 64 pictures in two versions, 384 KiB."""
    run = runs(load(spec, ["machine.workers=2"]).points)[0]
    memory(monkeypatch, MIB, MIB)
    with pytest.raises(
        UserError, match=r"^/dev/shm has 1 MiB for this process, .* --shm-size=1g, or set machine.workers to 0"
    ):
        prepare_inputs(run, StudyInputs(tmp_path / "runs/tiny", ONE))
    memory(monkeypatch, 2 * MIB, 2 * MIB)
    assert prepare_inputs(run, StudyInputs(tmp_path / "runs/tiny", ONE)).workers == Workers(2)


class Numbers:
    """Tensors of their place; a place of 7 can't be had."""

    def __getitem__(self, at: int) -> torch.Tensor:
        if at == 7:
            raise UserError("seven is missing; use six")
        return torch.tensor([at, os.getpid()])


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_order_and_an_error_is_raised_where_it_belongs(workers: int) -> None:
    got = list(loaded(Numbers(), range(5), Workers(workers), 16))
    assert [int(item[0]) for item in got] == [0, 1, 2, 3, 4]
    assert len({int(item[1]) for item in got}) == max(1, workers)
    feed = loaded(Numbers(), range(5, 9), Workers(workers), 16)
    assert [int(next(feed)[0]) for _ in range(2)] == [5, 6]
    with pytest.raises(UserError, match=r"^seven is missing; use six$") as caught:
        next(feed)
    assert caught.value.alone
    assert not active_children(), "workers end although the exception is still here"


def test_workers_end_with_a_loop_that_is_left() -> None:
    feed: Iterator[torch.Tensor] | None = loaded(Numbers(), range(1000, 2000), Workers(2), 16)
    assert feed is not None
    next(feed)
    assert len(active_children()) == 2
    feed = None
    gc.collect()
    assert not active_children()


def test_workers_do_not_outlive_a_run_that_is_killed(tmp_path: Path) -> None:
    def run() -> None:
        feed = loaded(Numbers(), range(1000, 2000), Workers(2), 16)
        found = {int(next(feed)[1]) for _ in range(8)}
        (tmp_path / "pids.part").write_text(" ".join(map(str, found)))
        (tmp_path / "pids.part").rename(tmp_path / "pids")
        time.sleep(100)

    parent = get_context("fork").Process(target=run)  # as the run itself, it may have children
    parent.start()
    while not (tmp_path / "pids").exists():
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    until = time.monotonic() + 300
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


class Slow(Numbers):
    """Each of them takes a while."""

    def __getitem__(self, at: int) -> torch.Tensor:
        time.sleep(0.1)
        return super().__getitem__(at)


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (
            signal.SIGKILL,
            r"a loader worker \(process \d+\) ended before its time: it was killed, as the kernel does when",
        ),
        pytest.param(
            signal.SIGSTOP,
            r"a loader worker \(process \d+\) was stopped and its batch does not come",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_worker_that_is_killed_or_stopped_ends_the_run_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, sign: signal.Signals, words: str
) -> None:
    monkeypatch.setattr(loader, "LOOK", 0.3)
    monkeypatch.setattr(loader, "STOPPED", 0.6)
    feed = loaded(Slow(), range(1000, 2000), Workers(2), 16)
    pid = int(next(feed)[1])
    os.kill(pid, sign)
    with pytest.raises((UserError, RuntimeError)) as caught:
        for _ in range(100):
            next(feed)
    fault = caught.value if isinstance(caught.value, UserError) else loader.lost_worker(caught.value)
    assert fault is not None
    assert re.match(words, str(fault)), fault
    assert fault.alone
    assert fault.again
    caught = None  # type: ignore[assignment]
    feed.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 300
    while active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not active_children(), "stopped ones too"


@pytest.mark.parametrize("room", [64, 300])
def test_shared_memory_that_is_full_ends_the_run_in_one_sentence(tmp_path: Path, room: int) -> None:
    """In a namespace of its own whose /dev/shm has so many KiB: too few for one batch, or for the next one."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from test_loader import loaded, Workers, UserError, torch\n"
        "class Large:\n    def __getitem__(self, at): return torch.zeros(25_000)\n"
        "try:\n    kept = list(loaded(Large(), range(50), Workers(1), 1))\n"
        "except UserError as error:\n    print(error)\n"
    )
    inside = f"mount -t tmpfs -o size={room}k none /dev/shm && exec {sys.executable} {script}"
    out = subprocess.run(["unshare", "-m", "sh", "-c", inside], capture_output=True, text=True, check=False)
    if "unshare" in out.stderr or "mount" in out.stderr:
        pytest.skip("mounting a small /dev/shm is not permitted here")
    assert out.stdout.startswith("a loader worker (process "), out.stderr
    assert "/dev/shm was full; start the container with a larger --shm-size, or set machine.workers to 0" in out.stdout
    assert "Traceback" not in out.stderr
