"""Bytes of files and of stores: patterns, schemes, patience."""

import os
import pickle
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import torch
from tars import named, write_tar
from test_pipeline import data_of, words_to_tokens

from data import store
from data.augmentation.augment import Augment
from data.loader import Workers
from data.pipeline import Pairs, Reading, batches
from data.refusal import UserError
from data.shards import read_index
from data.store import Reader, expand, with_retries


class Ranges(SimpleHTTPRequestHandler):
    """Files of a folder, and parts of them, which Python's own server can't send."""

    def do_GET(self) -> None:
        body = Path(self.translate_path(self.path)).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture
def served(world: Path) -> Iterator[str]:
    """The address of the world's pairs."""
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(world / "train")))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_come_over_http_as_they_come_from_disk(world: Path, served: str, tmp_path: Path, workers: int) -> None:
    near = read_index(f"{world}/train/*.tar", tmp_path / "near", beside=False)
    names = ",".join(Path(path).stem for path in near.paths)
    far = read_index(f"{served}/{{{names}}}.tar", tmp_path / "far", schemes=("http",))
    assert list(far.keys) == list(near.keys)
    assert far.digest == near.digest
    reading = Reading(0, 0, 1, 24, (1, 1), 32, Augment(synonyms="none"))
    both = [Pairs(index, None, data_of(), reading, words_to_tokens, None) for index in (near, far)]
    for (_, one), (_, other) in zip(*(batches(pairs, 1, 4, Workers(workers)) for pairs in both), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)


def test_shards_of_a_store_are_found_by_pattern_and_walked_once(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", named(3))
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/0.tar", path.read_bytes())
    found = expand("memory://shards/*.tar", ("memory",))
    assert len(found) == 1
    index = read_index("memory://shards/*.tar", tmp_path / "cache", schemes=("memory",))
    offset, size = map(int, index.where[2, :2])
    assert Reader().read([(index.paths[0], offset, size), (index.paths[0], 0, 4)]) == [b"jpg2", b"0000"]
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1
    memory.rm("/shards", recursive=True)
    with pytest.raises(UserError, match="memory://.*not found; check the path and its rights"):
        Reader().read([(index.paths[0], offset, size)])


def test_patterns(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", named(2, 10 * i))
    assert len(expand(f"{tmp_path}/{{0..2}}.tar")) == len(expand(f"{tmp_path}/*.tar")) == 3
    with pytest.raises(UserError, match=r"1 of the 4 files it names are missing, first .*3\.tar"):
        expand(f"{tmp_path}/{{0..3}}.tar")
    with pytest.raises(UserError, match="nothing matches"):
        expand(f"{tmp_path}/none-*.tar")


@pytest.mark.parametrize("name", ["pipe:cat /etc/passwd", "ssh://host/x.tar", "https::file:///x.tar", "file:///x.tar"])
def test_only_schemes_that_the_spec_allows_are_opened(name: str) -> None:
    with pytest.raises(UserError, match=r"expected a path or a URL of s3://, https:// \(data.schemes\), no '::'"):
        expand(name, ("s3", "https"))
    with pytest.raises(UserError, match="expected a path"):
        expand(name)


def test_a_store_that_lacks_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", lacking)
    with pytest.raises(UserError, match=r"Install s3fs to access S3; install it with: pip install 'antidote\[s3\]'"):
        store.stamp("s3://bucket/0.tar")


def test_transient_errors_are_tried_again_and_then_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", (0.0, 0.0))
    tries = []

    def flaky(good: int) -> str:
        tries.append(1)
        if len(tries) < good:
            raise OSError(5, "Input/output error")
        return "bytes"

    assert with_retries("x", lambda: flaky(3)) == "bytes"
    tries.clear()
    with pytest.raises(
        UserError, match=r"x can't be read: OSError: .*Input/output error \(3 tries in 0 s\); nothing is lost"
    ) as caught:
        with_retries("x", lambda: flaky(9))
    assert caught.value.alone
    tries.clear()
    with pytest.raises(UserError, match="No such file"):
        with_retries("x", lambda: os.stat("/nowhere/at/all"))
    assert not tries


def test_a_stale_handle_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    reader = Reader()
    assert reader.read([(str(tmp_path / "a"), 2, 3)]) == [b"234"]
    os.close(reader.files[str(tmp_path / "a")])
    with pytest.MonkeyPatch.context() as patch:
        close = os.close
        patch.setattr(os, "close", lambda file: None if file not in range(1000) else _quiet(close, file))
        assert reader.read([(str(tmp_path / "a"), 4, 2)]) == [b"45"]
    assert pickle.loads(pickle.dumps(reader)).files == {}
    reader.close()


def _quiet(close: object, file: int) -> None:
    try:
        close(file)  # type: ignore[operator]
    except OSError:
        return


def test_few_files_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN", 3)
    reader = Reader()
    for i in range(6):
        (tmp_path / f"{i}").write_bytes(bytes([i]))
    parts = reader.read([(str(tmp_path / f"{i}"), 0, 1) for i in range(6)])
    assert np.frombuffer(b"".join(parts), np.uint8).tolist() == list(range(6))
    assert len(reader.files) == 3
    reader.close()
