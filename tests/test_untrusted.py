"""Tars and pictures that nobody vouches for: every member is a good pair, a counted bad one or named, in bounded time and
memory, and an audit and a run judge alike."""

import json
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import HANGS, ROOT, run
from odd_tars import DAMAGES, bad_pictures, drawn, encoded, good_pictures, header, long_name, member, pax
from tars import pair, write_tar

from data import archive, check, decode
from data.archive import Damage, contents, grouped, walk
from data.decode import DecodeError
from data.shards import read_index

END = bytes(1024)


def alone(folder: Path, *words: str, timeout: float) -> dict[str, Any]:
    """What tests/untrusted.py finds, with a gigabyte of memory above its idle process."""
    out = run([sys.executable, str(ROOT / "tests/untrusted.py"), words[0], str(folder), *words[1:]], timeout=timeout)
    assert out.returncode == 0, out.stderr
    found: dict[str, Any] = json.loads(out.stdout)
    return found


@pytest.mark.parametrize("shards", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_every_member_of_generated_tars_is_in_the_ledger(tmp_path: Path, shards: int) -> None:
    seed = 5 if shards == 30 else time.time_ns() % 10**6
    found = alone(tmp_path, "ledger", str(shards), str(seed), timeout=HANGS + 40 * shards)
    assert found["wrong"] == [], f"seed {seed}"
    assert found["tried"] > 5 * shards
    assert found["peak"] < 1024


@pytest.mark.parametrize("seconds", [1, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_changed_tars_and_pictures_are_read_or_refused(tmp_path: Path, seconds: int) -> None:
    seed = 1 if seconds == 1 else time.time_ns() % 10**6
    found = alone(tmp_path, "fuzz", str(seconds), str(seed), timeout=HANGS + 2 * seconds)
    assert found["wrong"] == [], f"seed {seed}"
    assert found["tried"] > 20 * seconds
    assert found["peak"] < 1024


@pytest.mark.parametrize("end", DAMAGES, ids=range(len(DAMAGES)))
def test_a_header_that_lies_ends_the_shard_with_a_sentence(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(member(b"a.jpg", b"1") + member(b"a.txt", b"2") + end + (END if end else b""))
    with pytest.raises(Damage, match=r"0\.tar .*\(at byte [\d,]+, after 2 whole members\); fetch or write it again"):
        walk(str(path))
    found = contents(str(path))
    assert list(found.keys) == ["a"]
    assert found.damage


def pairs_of(*parts: bytes) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "0.tar").write_bytes(b"".join(parts) + END)
        return contents(str(folder / "0.tar"))

    return read


def test_a_long_name_is_the_next_members_alone(tmp_path: Path) -> None:
    long = [long_name(b"x" * 150 + b"/"), header(b"x", 0, b"5"), pax(path=b"y.jpg"), header(b"x", 0, b"2", b"z")]
    found = pairs_of(*long, member(b"a.jpg", b"1"), pax(path=b"b.txt"), member(b"x", b"2"), member(b"a.txt", b"3"))(tmp_path)
    assert list(found.keys) == ["a"]
    assert found.bad == [["b", "no_image"], ["y", "link_or_sparse"]]


def test_a_size_in_a_pax_record_counts(tmp_path: Path) -> None:
    body = pax(size=b"600") + header(b"a.jpg", 3) + bytes(1024) + member(b"a.txt", b"x")
    found = pairs_of(body)(tmp_path)
    assert found.places.tolist() == [[1536, 600, 3072, 1, -1, -1]]
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert [(info.name, info.offset_data, info.size) for info in tar] == walk(str(tmp_path / "0.tar"))


def test_a_key_that_comes_again_in_one_tar_is_counted_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "0.tar", [*pair("a", drawn()), *pair("b", drawn()), *pair("a", drawn("L")), *pair("a", drawn())])
    write_tar(tmp_path / "1.tar", [*pair("c", drawn()), ("b.png", b"no picture"), ("b.txt", b"in a shard before")])
    assert check.main(["*.tar", "--jobs", "1", "--out", "bad.jsonl"]) == 2
    said = capsys.readouterr().out
    assert "0.tar: 4 pairs expected, 2 good, 2 duplicate_key" in said
    assert "1.tar: 2 pairs expected, 1 good, 1 duplicate_key" in said
    assert len(Path("bad.jsonl").read_text().splitlines()) == 3


def test_pairs_with_several_dots_are_counted_and_the_dot_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = [one for i in range(20) for one in pair(f"{i:04d}", drawn())]
    parts = [("0001.mask.png", b"of 0001"), ("0001.cls", b"3")]  # further members of a pair, as webdataset has them
    write_tar(tmp_path / "0.tar", [*plain, *parts, *(one for i in range(20) for one in pair(f"photo.{i:04d}", drawn()))])
    assert check.main(["0.tar", "--jobs", "1"]) == 2
    said = capsys.readouterr().out
    assert "40 pairs expected, 20 good, 20 dot_in_name" in said
    assert "dot_in_name: a key ends at the first dot, so a.0.jpg and a.1.jpg are both of 'a'" in said


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_pictures_are_judged_by_their_bytes_alone(mode: decode.DecodeMode) -> None:
    for _, body in good_pictures():
        assert decode.picture(body, 32, mode).shape == (3, 32, 32)
    for _, body, cause in bad_pictures():
        for act in (lambda body=body: decode.picture(body, 48, mode), lambda body=body: decode.whole(body)):
            with pytest.raises(DecodeError, match=cause):
                act()  # type: ignore[no-untyped-call]


def test_the_centre_of_a_strip_is_enlarged_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = drawn(width=12, height=4).resize((90, 30))
    body = encoded(strip, "PNG")
    whole = decode.picture(body, 64)
    monkeypatch.setattr(decode, "_bound", lambda width, height: None)
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 64)
    assert np.abs(decode.picture(body, 64).astype(int) - whole).max() <= 1


def test_captions_in_json_are_words_that_can_be_written() -> None:
    assert decode.caption(b'\xef\xbb\xbf{"caption": "a cat"}', "json.caption") == "a cat"
    for body, cause in ((b'{"caption": "a \\ud800 cat"}', "caption_not_utf8"), (b"1" * 9000, "caption_not_json")):
        with pytest.raises(DecodeError, match=cause):
            decode.caption(body, "json.caption")


def test_large_members_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "0.tar", [one for i in range(30) for one in pair(f"{i}", drawn())])
    table = read_index(str(tmp_path / "0.tar"), tmp_path / "cache").where[:, [0, 1, 2, 3, 0, 0]]
    monkeypatch.setattr(check, "BYTES", int(table[:3, [1, 3]].sum()))
    parts = list(check._parts(check.read_table(str(tmp_path / "0.tar"), tmp_path / "cache"), 2))
    assert sum(parts, []) == list(range(30))
    assert max(map(len, parts)) == 3


def test_only_so_many_headers_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_tar(tmp_path / "0.tar", pair("a", drawn()) + pair("b", drawn())))
    quick = archive._quick(path)
    assert quick is not None
    monkeypatch.setattr(archive, "MOST", 3)
    assert archive._quick(path) is None
    assert np.array_equal(grouped(walk(path)).places, quick.places)


def test_numbers_that_fill_their_fields_are_left_to_the_walk(tmp_path: Path) -> None:
    found = pairs_of(header(b"a.jpg", b"000000000010") + bytes(512), member(b"a.txt", b"x"))(tmp_path)
    assert archive._quick(str(tmp_path / "0.tar")) is None
    assert found.places.tolist() == [[512, 8, 1536, 1, -1, -1]]


def test_a_name_twice_in_a_row_is_left_to_the_walk(tmp_path: Path) -> None:
    found = pairs_of(member(b"a.jpg", b"1"), member(b"a.jpg", b"2"), member(b"a.txt", b"x"))(tmp_path)
    assert archive._quick(str(tmp_path / "0.tar")) is None
    assert (list(found.keys), found.bad) == (["a"], [["a", "duplicate_key"]])
