"""The audit of shards: expected = good + bad, for every kind of damage."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import pair, write_tar

from data import check
from data.archive import BLOCK
from data.check import main, summary
from data.jobs import JobOptions, run_each, run_jobs
from data.shards import read_index

GOOD = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def damaged(folder: Path) -> Path:
    """Four shards of ten pairs with one of each fault, one of them cut in the middle."""
    for shard in range(4):
        members = [pair(f"{shard}{i}", GOOD, f"picture {i}") for i in range(10)]
        if shard == 1:
            members[0] = [("10.png", b"<html>"), ("10.txt", b"x")]
            members[1] = [("11.png", png(GOOD)), ("11.txt", b" ")]
            members[2] = [("12.png", png(GOOD)), ("12.txt", b"2024")]
            members[3] = [("13.png", png(GOOD))]
            members[4] = [("14.txt", b"words")]
            members[5] = [("15.png", png(Image.new("1", (9000, 9000)))), ("15.txt", b"x")]
            members[6] = [("16.png", png(Image.new("I;16", (8, 8)))), ("16.txt", b"x")]
            members[7] = pair("00", GOOD)  # as in the first shard
            members[8] = [("18.png", png(GOOD)), ("18.txt", b"\xff\xfe")]
        write_tar(folder / f"{shard}.tar", [member for one in members for member in one])
    path = folder / "2.tar"
    path.write_bytes(path.read_bytes()[: 13 * BLOCK])
    return folder


def test_every_fault_is_counted_by_cause_and_nothing_is_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged(tmp_path)
    assert main([f"{tmp_path}/*.tar", "--jobs", "1", "--out", "bad.jsonl"]) == 2
    said = capsys.readouterr()
    one = (
        "1.tar: 10 pairs expected, 1 good, 1 caption_not_utf8, 1 duplicate_key, 1 empty_caption, 1 huge_image, "
        "1 letterless_caption, 1 no_caption, 1 no_image, 1 sixteen_bit_image, 1 undecodable_image"
    )
    assert one in said.out
    assert "2.tar: 10 pairs expected, 3 good" in said.out
    assert "cut off" in said.out
    assert "4 shards: 40 pairs expected, 24 good (60.00%)" in said.out
    assert "error: 40.00% are bad, more than 1.00%" in said.err
    listed = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in listed if entry["shard"].endswith("1.tar")} == {
        "10", "11", "12", "13", "14", "15", "16", "00", "18"
    }  # fmt: skip
    assert main([f"{tmp_path}/*.tar", "--jobs", "1", "--max-bad", "0.5"]) == 0
    assert main([f"{tmp_path}/none*.tar"]) == 2
    assert "nothing matches" in capsys.readouterr().err


def test_an_audit_is_not_repeated_for_a_shard_that_has_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "train", tmp_path / "train")
    assert main(["train/*.tar", "--jobs", "2"]) == 0  # by submitit, in processes of their own
    assert "4 shards: 192 pairs expected, 192 good (100.00%); none bad" in capsys.readouterr().out
    monkeypatch.setattr(check, "_undecodable", lambda *given: sys.exit("audited again"))
    assert main(["train/*.tar", "--jobs", "1"]) == 0
    assert len(list(Path("train").glob("*.index.npz"))) == 4
    rows = summary(read_index("train/*.tar", Path("runs/.index")), {})
    assert [row.expected for row in rows] == [row.good for row in rows] == [48] * 4


@pytest.mark.parametrize("place", ["start", "inside", "caption"])
def test_an_audited_shard_that_rots_is_audited_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for shard in (0, 1):
        members = [[(f"{shard}{i}.png", png(GOOD)), (f"{shard}{i}.txt", b"a picture of a mark")] for i in range(300)]
        write_tar(Path(f"{shard}.tar"), [member for one in members for member in one])
    assert main(["*.tar", "--jobs", "1"]) == 0
    before = os.stat("1.tar")
    body = bytearray(Path("1.tar").read_bytes())
    at = body.index(b"a picture") if place == "caption" else body.index(b"\x89PNG") + (0 if place == "start" else 60)
    body[at : at + 4] = b"\xff\xff\xff\xff"
    Path("1.tar").write_bytes(body)
    os.utime("1.tar", ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    main(["*.tar", "--jobs", "1"])
    said = capsys.readouterr()
    assert said.err.count("holds other bytes than when it was audited") == 1
    assert "1.tar holds" in said.err
    assert "1.tar: 300 pairs expected, 299 good" in said.out
    main(["*.tar", "--jobs", "1"])
    assert "holds other bytes" not in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_work_that_fails_is_named_and_the_rest_is_done_once(tmp_path: Path, jobs: int) -> None:
    items = [tmp_path / name for name in ("0", "1", "none/2", "3")]
    items[0].mkdir()
    seen: list[tuple[int, int]] = []
    failed = run_jobs(os.mkdir, items, Path.is_dir, JobOptions(jobs), tmp_path / "jobs", lambda *at: seen.append(at))
    assert len(failed) == 1
    assert "none/2: FileNotFoundError" in failed[0]
    assert [item.is_dir() for item in items] == [True, True, False, True]
    assert all(total == 4 for _, total in seen)
    assert "FileExistsError" in run_each(os.mkdir, items[3:])[0]


def test_a_job_that_dies_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.Job._results_timeout_s", 1)  # it waits so long for a result that may be on its way
    failed = run_jobs(os._exit, [9, 9], lambda item: False, JobOptions(2), tmp_path / "jobs", lambda done, total: None)
    assert len(failed) == 2
    assert all(line.startswith("job ") and "log:" in line for line in failed)
