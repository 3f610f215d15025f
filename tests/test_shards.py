"""What the shards hold, and every way in which they can be damaged."""

import ast
import errno
import gzip
import json
import os
import random
import shutil
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import named, write_tar

from data import archive, table
from data.archive import BLOCK, Damage, contents, grouped, split_name, walk
from data.disk import DiskFull
from data.refusal import UserError
from data.shards import Index, key_hashes, read_index, same_pairs
from data.table import read_table


def test_walk_finds_what_tarfile_finds(world: Path) -> None:
    for path in sorted(world.glob("*/**/*.tar")):
        with tarfile.open(path) as tar:
            expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
        assert walk(str(path)) == expected


def test_no_two_threads_parse_array_headers_at_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy parses them with ast, which until Python 3.11.8 may raise SystemError where another thread parses too."""
    paths = [str(path) for path in sorted(world.glob("*/**/*.tar"))] * 4
    before = [list(read_table(path, tmp_path, beside=False).keys) for path in paths]
    here, most, parse = 0, 0, ast.parse

    def slowly(*args: object, **named: object) -> ast.AST:
        nonlocal here, most
        here += 1
        most = max(most, here)
        time.sleep(0.002)
        here -= 1
        return parse(*args, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(ast, "parse", slowly)
    with ThreadPoolExecutor(8) as pool:
        after = list(pool.map(lambda path: list(read_table(path, tmp_path, beside=False).keys), paths))
    assert after == before
    assert most == 1


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_both_formats(tmp_path: Path, kind: int) -> None:
    name = "d" * 150 + "/" + "ü" * 60 + ".jpg"
    path = write_tar(tmp_path / "a.tar", [(name, b"x"), ("b.txt", b"y")], kind)
    assert [m[0] for m in walk(str(path))] == [name, "b.txt"]


def test_a_tar_cut_inside_a_member_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 5000)])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="promises 5000 bytes for 'a.jpg' but ends before them.*0 whole members"):
        walk(str(path))


def test_a_tar_cut_between_members_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", named(10))
    path.write_bytes(path.read_bytes()[: 12 * BLOCK])  # tarfile reads six members of this without a word
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 6
    with pytest.raises(UserError, match=r"cut off \(at byte 6,144, after 6 whole members\)"):
        walk(str(path))


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", named(10))
    body = bytearray(path.read_bytes())
    body[6 * BLOCK + 3] ^= 1
    path.write_bytes(body)
    with pytest.raises(UserError, match="bad header"):
        walk(str(path))
    body[6 * BLOCK : 7 * BLOCK] = bytes(BLOCK)  # a header of zeros looks like the end
    path.write_bytes(body)
    with pytest.raises(UserError, match="has data behind its closing zero blocks"):
        walk(str(path))


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", named(200))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="is compressed, .*; unpack it first"):
        read_index(str(path), tmp_path / "cache")


def test_index_counts_what_is_no_sample(tmp_path: Path) -> None:
    odd = [("x.jpg", b"1"), ("y.txt", b"2"), ("run.pyd", b"3"), ("0001.jpg", b"4"), ("0001.txt", b"5")]
    write_tar(tmp_path / "0.tar", named(3))
    write_tar(tmp_path / "1.tar", odd)
    index = read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
    assert list(index.keys) == ["0000", "0001", "0002"]
    causes = {(key, cause) for _, key, cause in index.bad}
    assert causes == {("x", "no_caption"), ("y", "no_image"), ("run", "no_image"), ("0001", "duplicate_key")}
    assert index.counts.tolist() == [3, 0]
    assert [index.shard(sample) for sample in range(3)] == [0, 0, 0]
    offset, size = index.where[2, :2]
    assert (tmp_path / "0.tar").read_bytes()[offset : offset + size] == b"jpg2"


def same(one: Index, other: Index) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("where", "hashes", "counts"))
    return arrays and one.digest == other.digest and list(one.keys) == list(other.keys) and one.bad == other.bad


@pytest.mark.parametrize("beside", [True, False])
def test_index_is_kept_and_renewed_when_a_shard_changes(tmp_path: Path, beside: bool) -> None:
    path, cache = write_tar(tmp_path / "0.tar", named(3)), tmp_path / "cache"

    def read() -> Index:
        return read_index(str(path), cache, beside=beside)

    first = read()
    tables = [tmp_path / "0.tar.index.npz"] if beside else list(cache.glob("*.npz"))
    assert len(tables) == 1
    marks = {file: file.stat().st_mtime_ns for file in [*tables, *cache.rglob("*")]}
    assert same(first, read())
    assert {file: file.stat().st_mtime_ns for file in [*tables, *cache.rglob("*")]} == marks
    tables[0].write_bytes(b"half")  # a process killed while it wrote
    for folder in cache.glob("joined-*"):
        os.rename(folder, tmp_path / folder.name)
    assert same(first, read())
    write_tar(path, named(5))
    assert len(read()) == 5


def test_tables_of_a_folder_that_is_read_only_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "0.tar", named(3))
    keep = table.keep

    def refuse(entry: Path, *content: Any) -> None:
        if entry.parent == tmp_path:
            raise PermissionError
        keep(entry, *content)

    monkeypatch.setattr(table, "keep", refuse)
    read_index(str(path), tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1
    assert not (tmp_path / "0.tar.index.npz").exists()


def damaged(body: bytes, draw: random.Random, number: int) -> Iterator[bytes]:
    """Copies of a file's bytes with one bit flipped, cut, emptied."""
    for _ in range(number):
        at = draw.randrange(len(body))
        yield body[:at] + bytes([body[at] ^ 1 << draw.randrange(8)]) + body[at + 1 :]
    yield body[: draw.randrange(len(body))]
    yield body[:-1]
    yield body + b"\0"
    yield b""


def test_no_damage_of_the_joined_index_is_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", named(9, 9 * i))
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:-30000])  # so that something is lost
    whole = read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
    (home,) = (tmp_path / "cache").glob("joined-*")
    draw, tried = random.Random(0), 0
    for path in sorted(home.iterdir()):
        body = path.read_bytes()
        for bad in (*damaged(body, draw, 5), None):
            if bad is None:
                path.unlink()
            else:
                path.write_bytes(bad)
            capsys.readouterr()
            again = read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
            assert same(again, whole)
            assert again.lost == whole.lost
            assert again.sources == whole.sources
            said = capsys.readouterr().err.splitlines()
            assert [line.split(": ")[0] for line in said] in ([f"index {home}"], [])
            assert said or json.loads(bad or b"") == json.loads(body)  # a flip among the blanks of a list of digests
            assert path.read_bytes() == body
            tried += 1
    assert tried == 8 * 10
    assert sorted(path.name for path in home.parent.iterdir()) == [home.name]


def test_no_damage_of_a_table_is_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "0.tar", named(9))
    whole = read_table(str(path), tmp_path)
    kept = tmp_path / "0.tar.index.npz"
    body = kept.read_bytes()
    for bad in damaged(body, random.Random(1), 300):
        kept.write_bytes(bad)
        again = read_table(str(path), tmp_path)
        assert list(again.keys) == list(whole.keys)
        assert np.array_equal(again.sums, whole.sums)
        assert np.array_equal(again.places, whole.places)
        assert capsys.readouterr().err == f"index {kept} is not what was written; its shard is walked again\n"
        assert kept.read_bytes() == body


@pytest.mark.parametrize("name", ["meta.json", "where.npy", "digests.json"])
def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever file of the index it is that has no room, none is left half-written."""
    write_tar(tmp_path / "0.tar", named(3))
    write, save = Path.write_text, np.save

    def refuse(path: Path, *content: Any) -> Any:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(path, *content) if path.suffix == ".npy" else write(path, *content)

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(np, "save", refuse)
    with pytest.raises(DiskFull, match=r"disk full while the index of shards was written into .*cache \(No space left"):
        read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("ending", ["jpg", "txt"])
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("keeps_time", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_a_member_replaced_by_another_of_its_size_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, beside: bool, keeps_time: bool, joined: bool
) -> None:
    """Also where the shard's time is kept, as touch -r and rsync --times do, and where its table alone is there yet."""
    members = named(50)
    path = write_tar(tmp_path / "0.tar", members)
    first = read_index(str(path), tmp_path / "cache", beside=beside)
    os.utime(path, ns=(1, 1))
    assert read_index(str(path), tmp_path / "cache", beside=beside).digest == first.digest  # the same bytes, another time
    write_tar(path, [(name, body.swapcase() if name == f"0031.{ending}" else body) for name, body in members])
    if keeps_time:
        os.utime(path, ns=(1, 1))
    for home in () if joined else (tmp_path / "cache").glob("joined-*"):
        shutil.rmtree(home)
    capsys.readouterr()
    changed = read_index(str(path), tmp_path / "cache", beside=beside)
    what = {"jpg": "picture", "txt": "caption"}[ending]
    words = f"the {what} of '0031' in {path} is not what was indexed; all shards are indexed anew\n"
    assert capsys.readouterr().err == words * keeps_time
    assert same(changed, read_index(str(path), tmp_path / "cache", beside=beside))
    assert capsys.readouterr().err == ""
    assert np.array_equal(changed.where, first.where)
    assert not same_pairs(changed.digest, first.digest)
    assert same_pairs(first.digest, first.digest.split("-")[0])  # a study of before digests told the bytes
    assert not same_pairs(first.digest, "0" + first.digest[1:])


def test_the_same_shards_elsewhere_are_the_same_pairs(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for i in range(2):
            write_tar(tmp_path / name / f"{i}.tar", named(5, 5 * i))
    here, there = (read_index(f"{tmp_path}/{name}/*.tar", tmp_path / "cache") for name in ("here", "there"))
    assert here.digest == there.digest


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_walk_their_shares_and_map_the_same_index(tmp_path: Path, ranks: int) -> None:
    from threading import Barrier, Thread

    for i in range(5):
        write_tar(tmp_path / f"{i}.tar", named(4, 4 * i))
    meet, found = Barrier(ranks), {}

    def wait(own: UserError | None) -> UserError | None:
        meet.wait()
        return own

    def read(rank: int) -> None:
        found[rank] = read_index(f"{tmp_path}/*.tar", tmp_path / "cache", (rank, ranks), wait)

    threads = [Thread(target=read, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = read_index(f"{tmp_path}/*.tar", tmp_path / "other")
    assert all(same(found[rank], alone) for rank in range(ranks))


def test_pairs_of_several_sources_bear_their_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", named(2))
    write_tar(tmp_path / "b.tar", named(3))
    index = read_index({"one": f"{tmp_path}/a.tar", "two": f"{tmp_path}/b.tar"}, tmp_path / "cache")
    assert list(index.keys) == ["one:0000", "one:0001", "two:0000", "two:0001", "two:0002"]
    assert index.sources == (0, 1)
    assert index.bad == ()
    assert len(set(index.hashes.tolist())) == 5
    alone = read_index(f"{tmp_path}/*.tar", tmp_path / "other", caption="txt")
    for one in (index, alone):
        hashes = key_hashes(list(one.keys))
        assert (hashes == one.hashes[:, None]).any(1).all(), "a pair is found by its name, with or without its source's"


def test_captions_may_lie_in_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.json", b"{}"), ("1.jpg", b"x"), ("1.txt", b"t")])
    assert list(read_index(f"{tmp_path}/a.tar", tmp_path / "c", caption="json.caption").keys) == ["0"]
    index = read_index(f"{tmp_path}/a.tar", tmp_path / "c")
    assert list(index.keys) == ["1"]
    assert [(key, cause) for _, key, cause in index.bad] == [("0", "no_caption")]


def test_a_damaged_shard_gives_its_whole_pairs_and_its_loss_is_counted(tmp_path: Path) -> None:
    for i in range(4):
        write_tar(tmp_path / f"{i}.tar", named(10, 10 * i))
    path = tmp_path / "2.tar"
    path.write_bytes(path.read_bytes()[: 15 * BLOCK])  # two pairs of six blocks, and a half
    with pytest.raises(Damage):
        walk(str(path))
    for _ in range(2):  # walked, then from its table
        index = read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
        assert index.counts.tolist() == [10, 10, 2, 10]
        ((shard, pairs, why),) = index.lost
        assert (shard, pairs + len(index.bad)) == (str(path), 8)  # like its neighbours, for want of a better guess
        assert "cut off" in why


def test_a_shard_that_ends_early_without_an_error_is_found_by_its_statistics(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", named(7))
    (tmp_path / "0_stats.json").write_text(json.dumps({"count": 12, "successes": 10}))
    write_tar(tmp_path / "1.tar", named(10, 10))
    (tmp_path / "1_stats.json").write_text(json.dumps({"count": 12, "successes": 10}))
    index = read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
    assert index.lost == ((str(tmp_path / "0.tar"), 3, "img2dataset wrote 10 pairs, 7 are there"),)


def test_nothing_of_an_archive_is_unpickled_run_or_written(tmp_path: Path) -> None:
    """Names that climb, endings that other readers unpickle, links: bytes in an archive, nothing more."""
    evil = [("../../up.jpg", b"1"), ("../../up.txt", b"2"), ("/etc/x.pth", b"3"), ("m.npy", b"4"), ("m.pyd", b"5")]
    path = write_tar(tmp_path / "0.tar", evil)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.parent.rglob("up*"))
    index = read_index(str(path), tmp_path / "cache")
    assert list(index.keys) == ["../../up"]
    assert {(key, cause) for _, key, cause in index.bad} == {
        ("/etc/x", "no_image"), ("m", "no_image"), ("link", "link_or_sparse")
    }  # fmt: skip
    assert sorted(tmp_path.parent.rglob("up*")) == before


def test_a_member_beyond_reason_is_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.archive.LARGEST", 1000)
    path = write_tar(tmp_path / "0.tar", [("0.jpg", bytes(2000)), ("0.txt", b"x"), ("1.jpg", b"y"), ("1.txt", b"x")])
    index = read_index(str(path), tmp_path / "cache")
    assert [(key, cause) for _, key, cause in index.bad] == [("0", "huge_member")]


def test_names_are_cut_at_the_first_dot_of_the_file_name() -> None:
    assert split_name("a.b/c.tar.JPG") == ("a.b/c", "tar.jpg")
    assert split_name("0001.txt") == ("0001", "txt")


NAMES = st.sampled_from(["a", "b", "aa", "x/a", "a.b/c", "A", "ü", "", "n" * 90])
ENDINGS = st.sampled_from([".jpg", ".PNG", ".txt", ".json", ".webp", ".cls", ".seg.txt", "", ".jpeg", ".jpgx", ".pth"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(NAMES, ENDINGS, st.integers(0, 1500)), max_size=9),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(-3000, 0),
)
def test_the_quick_way_finds_what_the_walk_finds(members: list[tuple[str, str, int]], kind: int, cut: int) -> None:
    with TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "x.tar", [(n + e, bytes(size)) for n, e, size in members if n + e], kind)
        body = path.read_bytes()
        path.write_bytes(body[:cut] if cut and len(body) > -cut > 600 else body)
        quick = archive._quick(str(path))
        if quick is not None:
            slow = grouped(walk(str(path)))
            assert list(quick.keys) == list(slow.keys)
            assert quick.bad == slow.bad
            for name in ("hashes", "places"):
                assert np.array_equal(getattr(quick, name), getattr(slow, name)), name


def test_the_quick_way_reads_what_img2dataset_writes_and_leaves_what_is_odd(tmp_path: Path, world: Path) -> None:
    for path in (world / "train").glob("*.tar"):
        assert archive._quick(str(path)) is not None
    plain = [(f"{i:09d}.{e}", bytes(n)) for i in range(300) for e, n in (("jpg", 3000), ("json", 400), ("txt", 30))]
    path = write_tar(tmp_path / "0.tar", plain)
    quick = archive._quick(str(path))
    assert quick is not None
    assert len(quick.keys) == 300
    assert np.array_equal(quick.places, grouped(walk(str(path))).places)
    for at in (BLOCK * 7 + 3, BLOCK * 7 + 150, path.stat().st_size - 4):
        odd = bytearray(path.read_bytes())
        odd[at] ^= 1
        path.with_name("odd.tar").write_bytes(odd)
        assert archive._quick(str(path.with_name("odd.tar"))) is None
    scattered = [plain[0], plain[4], plain[2]]  # the picture of a pair, another pair, its caption
    assert archive._quick(str(write_tar(tmp_path / "1.tar", scattered))) is None
    assert list(contents(str(tmp_path / "1.tar")).keys) == ["000000000"]
