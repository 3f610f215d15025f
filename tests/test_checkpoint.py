"""A checkpoint is committed whole, verified before it is used, and never lost to a full disk."""

import errno
import os
import random
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from data.refusal import UserError
from engine.distributed.world import World
from engine.training import checkpoint

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def save(folder: Path, step: int, size: int = 100) -> Path:
    def write(tag: str) -> None:
        (folder / tag / "mp_rank_00_model_states.pt").write_bytes(bytes(size))

    return checkpoint.save(folder, step, {"zero": 0}, {"scale": torch.ones(1)}, ALONE, write)


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-000000002", "step-000000003"]
    path, facts = checkpoint.newest(tmp_path, ALONE, 0)  # type: ignore[misc]
    assert path.name == "step-000000003"
    assert facts["step"] == 3
    assert sorted(os.listdir(tmp_path)) == ["step-000000002", "step-000000003"]


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none", ALONE, 0) is None


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "own_rank_0.pt", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path: Path, name: str, harm: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    body = bytearray(path.read_bytes())
    if harm == "flip":
        body[len(body) // 2] ^= 4
        path.write_bytes(body)
    elif harm == "cut":
        path.write_bytes(body[: len(body) // 2])
    else:
        path.unlink()
    newest = checkpoint.newest(tmp_path, ALONE, 0)
    assert newest is not None
    if not (
        harm == "flip" and name == "manifest.json" and newest[0].name == "step-000000002"
    ):  # a flip there may be harmless
        assert newest[0].name == "step-000000001"
        assert len(list(tmp_path.glob("aside-*"))) == 1


def test_when_none_verifies_the_run_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "own_rank_0.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* verifies \(1 set aside\)"):
        checkpoint.newest(tmp_path, ALONE, 0)


def test_a_killed_save_leaves_what_was_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".staging-000000002").mkdir()
    (tmp_path / ".staging-000000002" / "half").write_bytes(b"x")
    assert checkpoint.newest(tmp_path, ALONE, 0)[0].name == "step-000000001"  # type: ignore[index]
    save(tmp_path, 2)
    assert not list(tmp_path.glob(".staging*"))


def test_another_number_of_ranks_is_refused_under_zero(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert checkpoint.newest(tmp_path, World(0, 2, 0, 2, torch.device("cpu")), 0) is not None
    with pytest.raises(UserError, match="written by 1 processes at ZeRO stage 0, but this is 2 at stage 1"):
        checkpoint.newest(tmp_path, World(0, 2, 0, 2, torch.device("cpu")), 1)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    with pytest.raises(
        UserError, match="disk full while saving .* bytes are needed and 10 are free; the checkpoints before it are intact"
    ):
        save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step-000000001"]


def test_a_disk_that_fills_during_the_save_is_said_and_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def write(tag: str) -> None:
        (tmp_path / tag / "mp_rank_00_model_states.pt").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="disk full while saving"):
        checkpoint.save(tmp_path, 2, {}, {}, ALONE, write)
    assert sorted(os.listdir(tmp_path)) == ["step-000000001"]
    assert checkpoint.newest(tmp_path, ALONE, 0)[0].name == "step-000000001"  # type: ignore[index]


def test_a_really_full_disk(tmp_path: Path) -> None:
    """torch.save into 2 MB: what torch says of file positions becomes 'disk full'."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        with pytest.raises(UserError, match="disk full while saving"):
            checkpoint.save(disk, 1, {}, {"big": torch.zeros(1 << 20)}, ALONE, lambda tag: None)
        assert not os.listdir(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_random_states_come_back() -> None:
    random.gauss(0, 1)
    state = checkpoint.random_state()
    drawn = random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()
    checkpoint.set_random_state(state)
    assert (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()) == drawn


def test_a_pickle_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/sprung",)

    torch.save({"scale": Trap()}, path / "own_rank_0.pt")
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpoint.own_state(path, 0)
    assert not (tmp_path / "sprung").exists()
