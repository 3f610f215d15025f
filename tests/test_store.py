"""Bytes of files and of stores: patterns, schemes, patience."""

import os
import pickle
import re
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import torch
from braceexpand import braceexpand
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import named, write_tar
from test_pipeline import data_of, words_to_tokens

from data import patience, pattern, store
from data.augmentation.augment import Augment
from data.loader import Workers
from data.patience import Left, Patience, with_retries
from data.pipeline import Pairs, Reading, batches
from data.refusal import UserError
from data.shards import read_index
from data.store import PatientFile, Reader, expand


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
    with pytest.raises(UserError, match=r"memory://.*not found \(404\); check the path and the bucket's rights"):
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


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a/{00000..09999}.tar::b/{10000..19999}.tar", "hold '::'; expected a path"),
        ("s/{0..999999999999}.tar", "stand for more than 1,000,000 files"),
        ("s/{0..99999999999999999999999}.tar", "stand for more than 1,000,000 files"),
        ("s/" + "{0..9}" * 9, "stand for more than 1,000,000 files"),
        ("s/" + "{0..9}" * 50_000, "stand for more than 1,000,000 files"),
        ("s/{" + ",".join(["{0..99999}"] * 11) + "}", "stand for more than 1,000,000 files"),
        ("{0..999999}" + "x" * 1000, "or 256 MB of names"),
        ("s/{0..9.tar", "leaves a brace open"),
        ("s/0..9}.tar", "closes a brace at character 7 that is not open"),
        ("{" * 100_000, "more than 16 braces within each other"),
        ("s/\0.tar", "hold a zero character"),
        ("{0..20000}/*.tar", "more than 10,000 patterns with"),
    ],
)
def test_a_pattern_of_too_many_or_unclosed_braces_is_refused_before_it_is_expanded(pattern: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=words):
        expand(pattern, ("s3",))
    assert time.process_time() - began < 5  # it takes a twentieth of that on an idle machine


@settings(max_examples=60)
@given(st.text("{},.0129aez\\-*", max_size=24))
def test_names_are_counted_as_they_are_expanded(text: str) -> None:
    try:
        size = pattern._count(text)
    except UserError:
        return
    names = list(braceexpand(text))
    assert len(names) <= size.number
    assert sum(map(len, names)) <= size.bytes or "\\" in text
    if not re.search(r"[A-Z]\.\.[a-z]|[a-z]\.\.[A-Z]", text):
        assert len(names) == size.number


def test_a_store_that_lacks_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    with pytest.raises(UserError, match=r"Install s3fs to access S3; install it with: pip install s3fs"):
        store.stamp("s3://bucket/0.tar")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no package opens the scheme 'nowhere'; expected one of .*s3"):
        store.stamp("nowhere://bucket/0.tar")


class Said(Exception):
    """As botocore and aiohttp tell what a store answered."""

    def __init__(self, words: str, status: int | None = None, code: str = "") -> None:
        super().__init__(words)
        self.status = status
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}} if code else None


class EndpointConnectionError(Exception):
    """As botocore's."""


class NoCredentialsError(Exception):
    """As botocore's."""


class HTTPClientError(Exception):
    """As botocore's, of what was no answer."""

    status = 400


class Slow:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(patience, "time", slow)
    return slow


def failing(error: BaseException, cause: BaseException | None = None) -> None:
    raise error from cause


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (Said("Forbidden", 403), None, r"refuses access \(403: Forbidden\); check the credentials \(AWS_ACCESS_KEY_ID"),
        (PermissionError(13, "Access Denied"), Said("no", 403, "AccessDenied"), r"refuses access \(403"),
        (FileNotFoundError("bucket/0.tar"), None, r"not found \(404\); check the path"),
        (FileNotFoundError("x"), Said("Forbidden", 403), r"refuses access \(403"),  # as fsspec's http has it
        (FileNotFoundError("The specified bucket does not exist"), None, r"no bucket 'bucket'; check the bucket's name"),
        (OSError(22, "x"), Said("?", 404, "NoSuchBucket"), r"no bucket 'bucket'; .*endpoint \(AWS_ENDPOINT_URL"),
        (NoCredentialsError("Unable to locate credentials"), None, r"asks for credentials .*; set AWS_ACCESS_KEY_ID"),
        (ValueError("Invalid endpoint: x"), None, r"Invalid endpoint: x; check the endpoint \(AWS_ENDPOINT_URL"),
        (
            OSError(5, "x"),
            Said("use another region", 400, "AuthorizationHeaderMalformed"),
            r"answers 400 .*check the region",
        ),
    ],
)
def test_what_no_waiting_helps_is_said_at_once(
    clock: Slow, error: BaseException, cause: BaseException | None, words: str
) -> None:
    with pytest.raises(UserError, match=f"^s3://bucket/0.tar: .*{words}") as caught:
        with_retries("s3://bucket/0.tar", lambda: failing(error, cause))
    assert clock.now == 0
    assert "same command" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("s3://b/0.tar", EndpointConnectionError("Could not connect"), r"can't be reached \(Could not connect\)"),
        ("https://b/0.tar", ConnectionRefusedError(111, "refused"), r"can't be reached \(.Errno 111. refused\)"),
        ("s3://b/0.tar", TimeoutError(), "can't be reached"),
        ("s3://b/0.tar", HTTPClientError("bad status line"), r"can't be reached \(bad status line\)"),
        ("s3://b/0.tar", Said("Slow Down", 503), r"answers 503 \(Slow Down\)"),
        ("s3://b/0.tar", Said("Internal", 500, "InternalError"), r"answers 500"),
        ("gs://b/0.tar", Said("Too Many", 429), r"answers 429"),
        ("/data/0.tar", OSError(5, "Input/output error"), "can't be read: Input/output error"),
        ("/data/0.tar", OSError(116, "Stale file handle"), "can't be read: Stale file handle"),
    ],
)
def test_what_may_pass_is_tried_for_data_patience_with_a_line_a_minute(
    clock: Slow, capsys: pytest.CaptureFixture[str], path: str, error: BaseException, words: str
) -> None:
    left = [7]

    def flaky() -> str:
        left[0] -= 1
        return "bytes" if not left[0] else failing(error)  # type: ignore[func-returns-value, return-value]

    assert with_retries(path, flaky, Patience(600)) == "bytes"
    assert clock.now < 60
    capsys.readouterr()
    with pytest.raises(
        UserError, match=rf"^{path}: .*{words}.* \(\d+ tries in 10 min, data.patience\); nothing is lost"
    ) as end:
        with_retries(path, lambda: failing(error), Patience(600))
    assert end.value.alone
    assert "then start the same command again" in str(end.value)
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 11
    assert all(line.startswith(f"waiting for {path}: ") for line in lines)


def test_who_waits_leaves_at_once_when_asked_to_stop(clock: Slow) -> None:
    with pytest.raises(Left):
        with_retries("s3://b/0.tar", lambda: failing(TimeoutError()), Patience(600, leave=lambda: clock.now > 30))
    assert 30 < clock.now < 32


def test_a_defect_of_ours_and_a_missing_file_are_not_tried_again(clock: Slow) -> None:
    with pytest.raises(ZeroDivisionError):
        with_retries("/x", lambda: 1 / 0)
    with pytest.raises(UserError, match="/x: No such file or directory; check the path and its rights"):
        with_retries("/x", lambda: os.stat("/nowhere/at/all"))
    assert clock.now == 0


def test_a_read_that_fails_amid_a_walk_is_tried_again(tmp_path: Path, clock: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/walked/0.tar", write_tar(tmp_path / "0.tar", named(40)).read_bytes())
    fails = iter([False, True, True, False, True])
    read = PatientFile._read

    def sometimes(file: PatientFile, size: int) -> bytes:
        if next(fails, False):
            file.file.seek(0)  # who knows where it stands then
            raise Said("Internal", 500)
        return read(file, size)

    monkeypatch.setattr(PatientFile, "_read", sometimes)
    far = read_index("memory://walked/0.tar", tmp_path / "far", schemes=("memory",))
    assert far.digest == read_index(f"{tmp_path}/0.tar", tmp_path / "near").digest
    assert clock.now > 0
    memory.rm("/walked", recursive=True)


def test_of_ranges_fetched_together_those_that_failed_are_fetched_again(
    clock: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/parts/{i}": bytes([i] * 9) for i in range(4)})
    monkeypatch.setattr(
        memory, "cat_ranges", lambda paths, *rest, **more: [b"\0\0", Said("x", 500), b"\2\2", Said("y", 500)]
    )
    parts = Reader().read([(f"memory://parts/{i}", 1, 2) for i in range(4)])
    assert parts == [bytes([i] * 2) for i in range(4)]
    memory.rm("/parts/3")
    with pytest.raises(UserError, match=r"memory://parts/3: not found"):
        Reader().read([(f"memory://parts/{i}", 1, 2) for i in range(4)])


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
