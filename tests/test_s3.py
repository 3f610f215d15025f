"""Runs on shards in an S3 store that fails, refuses and tarries: moto's server, with faults put before it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SELDOM, antidote, journals, settings
from forked import free_port
from test_run import kill_after

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>"


class Store:
    """An S3 server with a bucket of the world's pairs; `fault(number, path)` says what is answered to a request instead:
    (status, code), seconds of waiting, or None."""

    def __init__(self, shards: Path) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.fault: Callable[[int, str], Any] = lambda number, path: None
        self.requests = 0
        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        import boto3

        client = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket="pairs")
        for path in sorted((shards / "train").glob("*.tar")):
            client.upload_file(str(path), "pairs", f"train/{path.name}")

    def answer(self, environ: dict[str, Any], start: Any) -> Any:
        """A WSGI application."""
        self.requests += 1
        fault = self.fault(self.requests, environ["PATH_INFO"])
        if isinstance(fault, tuple):
            status, code = fault
            start(f"{status} {code}", [("Content-Type", "application/xml")])
            if environ["REQUEST_METHOD"] == "HEAD":
                return []  # a body would be taken for the next answer
            return [ERROR.format(code=code, words=f"told so by the test: {code}").encode()]
        if fault:
            time.sleep(fault)
        return self.app(environ, start)


@pytest.fixture
def store(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for package in ("moto", "s3fs", "flask"):
        pytest.importorskip(package, reason=f"needs {package}: make nightly-tools")
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    served = Store(world)
    monkeypatch.setenv("AWS_ENDPOINT_URL", served.url)
    yield served
    served.server.shutdown()


FAR = settings("clean=null", "data.pretrain.shards=s3://pairs/train/{00000..00003}.tar")


def test_a_run_that_is_killed_goes_on_through_500s_to_the_bits_of_a_local_one(
    store: Store, spec: Path, world: Path, tmp_path: Path
) -> None:
    near = tmp_path / "near"
    near.mkdir()
    local = antidote("--spec", str(spec), *SELDOM, *settings("clean=null"), cwd=near)
    assert local.returncode == 0, local.stderr
    kill_after(9, spec, FAR)
    store.fault = lambda number, path: (500, "InternalError") if number % 9 in (0, 1) else None
    out = antidote("--spec", str(spec), *FAR, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "goes on at step" in out.stderr
    ((here, rows),) = journals(near / "runs/tiny").items()
    ((there, others),) = journals(tmp_path / "runs/tiny").items()
    assert here != there
    assert rows == others
    weights = [folder / "weights.safetensors" for folder in (near / "runs/tiny" / here, tmp_path / "runs/tiny" / there)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = antidote("--spec", str(spec), *FAR, cwd=near)  # the same pairs as those on the disk
    assert again.returncode == 0, again.stderr
    assert "are the same pairs as" in again.stderr
    assert list(journals(near / "runs/tiny")) == [here]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_outage_is_waited_for_and_after_patience_the_same_command_goes_on(
    store: Store, spec: Path, tmp_path: Path, workers: int
) -> None:
    sets = [*FAR, *settings(f"machine.workers={workers}")]
    kill_after(6, spec, sets)
    store.requests = 0
    store.fault = lambda number, path: (503, "SlowDown") if number > 12 else None
    brief = antidote("--spec", str(spec), *sets, *settings("data.patience=0.02"), cwd=tmp_path)
    assert brief.returncode == 2
    assert "Traceback" not in brief.stderr
    line = next(line for line in brief.stderr.splitlines() if line.startswith("error"))  # the run; then how many failed
    assert "data.patience); nothing is lost" in line
    assert "then start the same command again" in line
    ends = time.monotonic() + 20
    store.fault = lambda number, path: (503, "SlowDown") if time.monotonic() < ends else None
    out = antidote("--spec", str(spec), *sets, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    ((_, rows),) = journals(tmp_path / "runs/tiny").items()
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 25))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("forbidden", r"the store refuses access (403"),
        ("no bucket", "the store has no bucket 'nowhere'; check the bucket's name"),
        ("no bucket, *", "the store has no bucket 'nowhere'; check the bucket's name"),
        ("no file", "00004.tar: not found (404); check the path"),
        ("no file, *", "other/*.tar: not found (404); check the path"),
        ("refused", "the store can't be reached"),
        ("no host", "the store can't be reached"),
        ("endpoint", "Invalid endpoint: nonsense; check the endpoint (AWS_ENDPOINT_URL"),
        ("no keys", "the store asks for credentials and there are none"),
    ],
)
def test_what_is_wrong_with_a_store_is_said_in_one_sentence(
    store: Store, spec: Path, tmp_path: Path, case: str, words: str
) -> None:
    shards, env = "s3://pairs/train/{00000..00003}.tar", {"AWS_EC2_METADATA_DISABLED": "true"}
    if case == "forbidden":
        store.fault = lambda number, path: (403, "AccessDenied")
    elif case == "no keys":
        env |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
    shards = {
        "no bucket": "s3://nowhere/train/{00000..00003}.tar", "no bucket, *": "s3://nowhere/train/*.tar",
        "no file": "s3://pairs/train/{00000..00009}.tar", "no file, *": "s3://pairs/other/*.tar",
    }.get(case, shards)  # fmt: skip
    urls = {"refused": f"http://127.0.0.1:{free_port()}", "no host": "http://no.host.invalid:9", "endpoint": "nonsense"}
    env["AWS_ENDPOINT_URL"] = urls.get(case, store.url)
    sets = settings("clean=null", f"data.pretrain.shards={shards}", "data.patience=0.02")
    out = antidote("--spec", str(spec), *sets, cwd=tmp_path, **env)
    assert out.returncode == 2, out.stderr
    assert "Traceback" not in out.stderr
    (line,) = [line for line in out.stderr.splitlines() if line.startswith("error")]
    assert words in line
    assert ("same command" in line) == (case in ("refused", "no host"))


def test_slow_answers_are_waited_for(store: Store, spec: Path, tmp_path: Path) -> None:
    store.fault = lambda number, path: 0.2
    out = antidote("--spec", str(spec), *FAR, *settings("pretrain.epochs=1"), cwd=tmp_path)
    assert out.returncode == 0, out.stderr
