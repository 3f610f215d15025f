"""What the shards hold, and every way in which they can be damaged."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.refusal import Refusal
from data.shards import BLOCK, expand, read_index, split_name, walk


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def pairs(number: int, first: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{i:04d}.{e}", f"{e}{i}".encode()) for i in range(first, first + number) for e in ("jpg", "txt", "json")]


def test_walk_finds_what_tarfile_finds(world: Path) -> None:
    for path in sorted(world.glob("*/**/*.tar")):
        with tarfile.open(path) as tar:
            expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
        assert walk(str(path)) == expected


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_both_formats(tmp_path: Path, kind: int) -> None:
    name = "d" * 150 + "/" + "ü" * 60 + ".jpg"
    path = write_tar(tmp_path / "a.tar", [(name, b"x"), ("b.txt", b"y")], kind)
    assert [m[0] for m in walk(str(path))] == [name, "b.txt"]


def test_a_tar_cut_inside_a_member_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 5000)])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(Refusal, match="promises 5000 bytes for 'a.jpg' but ends before them.*0 whole members"):
        walk(str(path))


def test_a_tar_cut_between_members_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(10))
    path.write_bytes(path.read_bytes()[: 12 * BLOCK])  # tarfile reads six members of this without a word
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 6
    with pytest.raises(Refusal, match=r"cut off \(at byte 6,144, after 6 whole members\)"):
        walk(str(path))


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(10))
    body = bytearray(path.read_bytes())
    body[6 * BLOCK + 3] ^= 1
    path.write_bytes(body)
    with pytest.raises(Refusal, match="bad header"):
        walk(str(path))
    body[6 * BLOCK : 7 * BLOCK] = bytes(BLOCK)  # a header of zeros looks like the end
    path.write_bytes(body)
    with pytest.raises(Refusal, match="has data behind its closing zero blocks"):
        walk(str(path))


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(200))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(Refusal, match="is compressed; unpack it first"):
        walk(str(path))


def test_patterns(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", pairs(2, 10 * i))
    assert len(expand(f"{tmp_path}/{{0..2}}.tar")) == len(expand(f"{tmp_path}/*.tar")) == 3
    with pytest.raises(Refusal, match=r"1 of the 4 files it names are missing, first .*3\.tar"):
        expand(f"{tmp_path}/{{0..3}}.tar")
    with pytest.raises(Refusal, match="nothing matches"):
        expand(f"{tmp_path}/none-*.tar")
    with pytest.raises(Refusal, match="name a scheme"):
        expand("pipe:cat /etc/passwd")


def test_index_counts_what_is_no_sample(tmp_path: Path) -> None:
    odd = [("x.jpg", b"1"), ("y.txt", b"2"), ("run.pyd", b"3"), ("0001.jpg", b"4"), ("0001.txt", b"5")]
    write_tar(tmp_path / "0.tar", pairs(3))
    write_tar(tmp_path / "1.tar", odd)
    index = read_index(f"{tmp_path}/*.tar", tmp_path / "cache")
    assert index.keys == ["0000", "0001", "0002"]
    causes = {(key, cause) for _, key, cause in index.bad}
    assert causes == {("x", "no_caption"), ("y", "no_image"), ("run", "no_image"), ("0001", "duplicate_key")}
    offset, size = index.where[2, :2]
    assert (tmp_path / "0.tar").read_bytes()[offset : offset + size] == b"jpg2"


def test_index_is_cached_and_renewed_when_a_shard_changes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(3))
    first = read_index(str(path), tmp_path / "cache")
    entries = list((tmp_path / "cache").iterdir())
    again = read_index(str(path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == entries
    assert first.digest == again.digest
    assert np.array_equal(first.where, again.where)
    entries[0].write_bytes(b"half")  # a process killed while it wrote
    assert read_index(str(path), tmp_path / "cache").digest == first.digest
    write_tar(path, pairs(5))
    assert len(read_index(str(path), tmp_path / "cache")) == 5


def test_names_are_cut_at_the_first_dot_of_the_file_name() -> None:
    assert split_name("a.b/c.tar.JPG") == ("a.b/c", "tar.jpg")
    assert split_name("0001.txt") == ("0001", "txt")
