"""The world of icons: its shards, npm's part, and what ends in a sentence without npm or a network."""

import base64
import errno
import hashlib
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from icon_packages import SHAPES, STYLES, icons, package, pinned
from test_synthetic import contents

import data.icons.fetch
import data.icons.render
import data.icons.world
from data import check
from data.captioned import read_captioned
from data.icons.__main__ import main
from data.icons.fetch import Pin
from data.labelled import Imagenet, read_labelled

RESVG = pytest.mark.skipif(find_spec("resvg_py") is None, reason="needs resvg-py: pip install -e '.[icons]'")
NPM = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the packages of six sets, which are the pinned ones."""
    folder = tmp_path / "packages"
    pins = [package(folder, name, icons(name)) for name in STYLES]
    monkeypatch.setattr(data.icons.fetch, "PINS", pinned(tmp_path / "sets.json", pins))
    return folder


def words(folder: Path, packages: Path, *more: str) -> list[str]:
    return [str(folder), "--evaluation", "test", "--captioned", "2", "--workers", "1", "--packages", str(packages), *more]


@RESVG
def test_a_world_is_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "a", packages)) == 0
    assert "18 pairs and 4 test pictures of 4 classes from 6 sets" in capsys.readouterr().out
    assert main(words(tmp_path / "b", packages, "--workers", "2")) == 0
    whole = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == whole
    assert main(words(tmp_path / "a", packages)) == 0
    assert "already there" in capsys.readouterr().out
    assert main(words(tmp_path / "a", packages, "--seed", "1")) == 2
    assert "is there and not this world" in capsys.readouterr().err
    assert contents(tmp_path / "a") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "packages", "sets.json"]
    labelled = read_labelled(str(tmp_path / "a/eval"), Imagenet([], [], []))
    assert labelled.classes == sorted(SHAPES)
    assert sorted(labelled.labels.tolist()) == [0, 1, 2, 3]
    held = read_captioned(str(tmp_path / "a/retrieval"), [])
    assert (len(held), len(held.captions)) == (2, 4)
    assert check.main([str(tmp_path / "b/train/*.tar"), "--jobs", "1"]) == 0
    assert "18 good" in capsys.readouterr().out
    with tarfile.open(tmp_path / "a/train/00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    facts = [json.loads(body) for name, body in members.items() if name.endswith(".json")]
    assert len(members) == 3 * len(facts) == 3 * 18
    assert all(members[f"{one['key']}.txt"].decode() == one["caption"] for one in facts)
    assert {one["set"] for one in facts} == set(STYLES) - {"test"}
    labels = {row["key"]: row["label"] for row in map(json.loads, whole["labels.jsonl"].decode().splitlines())}
    assert labels == {one["key"]: labelled.classes.index(one["concept"]) for one in facts}
    assert main([*words(tmp_path / "c", packages), "--captioned", "0"]) == 0
    assert not (tmp_path / "c/retrieval").exists()
    rows = json.loads(whole["licences.json"])
    assert {row["set"]: row["author"] for row in rows} == {name: f"{name}'s author" for name in STYLES}
    assert sum(row["pictures"] for row in rows) == 18 + 4 + 2


@RESVG
def test_nothing_half_written_is_left(
    tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert main(words(tmp_path / "a", packages, "--sets", "one,two")) == 2
    assert "0 names of the evaluation sets (test) stand in at least 5" in capsys.readouterr().err
    (packages / "iconify-json-two-1.0.0.tgz").write_bytes(b"another")
    assert main(words(tmp_path / "a", packages)) == 2
    assert "is not @iconify-json/two@1.0.0: its digest is" in capsys.readouterr().err
    assert main(words(packages / "iconify-json-one-1.0.0.tgz" / "a", packages)) == 2
    assert "can't be written" in capsys.readouterr().err
    assert main(words(tmp_path / "a", packages / "iconify-json-one-1.0.0.tgz")) == 2
    assert "packages can't be written" in capsys.readouterr().err
    package(packages, "two", icons("two"))
    monkeypatch.setattr(data.icons.world, "_sheet", full)
    assert main(words(tmp_path / "a", packages)) == 2
    assert "disk full while the world of icons was written into" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages", "sets.json"]


@RESVG
def test_each_drawing_gives_its_views_and_nothing_else_changes(tmp_path: Path, packages: Path) -> None:
    """A view is another picture under a caption of its own; the first ones are those of a world of one view."""
    for name, views in (("one", "1"), ("three", "3")):
        assert main([*words(tmp_path / name, packages), "--views", views]) == 0
    one, three = (contents(tmp_path / name) for name in ("one", "three"))
    same = ("eval/", "retrieval/", "left_out.jsonl")
    assert [name for name in one if name.startswith(same)] == [name for name in three if name.startswith(same)]
    assert all(one[name] == three[name] for name in one if name.startswith(same))
    pictures: dict[tuple[str, str], set[bytes]] = {}
    with tarfile.open(tmp_path / "three/train/00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for facts in (json.loads(body) for name, body in members.items() if name.endswith(".json")):
        pictures.setdefault((facts["set"], facts["name"]), set()).add(members[f"{facts['key']}.jpg"])
    assert [len(views) for views in pictures.values()] == [3] * 18
    with tarfile.open(tmp_path / "one/train/00000.tar") as tar:
        firsts = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for facts in (json.loads(body) for name, body in firsts.items() if name.endswith(".json")):
        assert firsts[f"{facts['key']}.jpg"] in pictures[facts["set"], facts["name"]]
    assert "views" not in json.loads(one["world.json"])
    assert json.loads(three["world.json"])["views"] == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pixels", "8"], "pictures of 16 to 512 pixels"),
        (["--pairs", "-1"], "no negative counts"),
        (["--workers", "0"], "at least 1 worker"),
        (["--views", "0"], "at least 1 worker and 1 view"),
        (["--sets", "none"], "'none' is none of the 6 icon sets"),
        (["--evaluation", "tset"], "nearest: test"),
        (["--evaluation", ""], "at least 1 set to evaluate on"),
        (["--evaluation", ",".join(STYLES)], "1 to train on"),
        (["--sets", "test"], "1 to train on"),
    ],
)
def test_options_that_make_no_world_end_in_a_sentence(
    tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main([*words(tmp_path / "a", packages), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_without_resvg_or_npm_a_sentence_says_what_to_install(
    tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data.icons.render.resvg.cache_clear()
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "resvg_py", None)
        assert main(words(tmp_path / "a", packages)) == 2
    assert "resvg-py, which draws icons, is not installed; install it: python -m pip" in capsys.readouterr().err
    shutil.rmtree(packages)
    monkeypatch.setattr(data.icons.__main__, "resvg", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert main(words(tmp_path / "a", packages)) == 2
    assert (
        "npm, which fetches the icon sets, is not on the PATH; install Node.js, or python -m pip" in capsys.readouterr().err
    )
    assert not (tmp_path / "a").exists()


class Registry(BaseHTTPRequestHandler):
    """npm's registry of the packages in a folder."""

    folder: Path

    def do_GET(self) -> None:
        name = self.path.replace("%2f", "/").split("/")[2]
        file = self.folder / f"iconify-json-{name}-1.0.0.tgz"
        if not file.is_file():
            self.send_error(404)
            return
        body = whole = file.read_bytes()
        if not self.path.endswith(".tgz"):
            digest = "sha512-" + base64.b64encode(hashlib.sha512(whole).digest()).decode()
            link = f"http://{self.headers['Host']}/@iconify-json/{name}/-/{name}-1.0.0.tgz"
            one = {"name": f"@iconify-json/{name}", "version": "1.0.0", "dist": {"tarball": link, "integrity": digest}}
            body = json.dumps({"name": one["name"], "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": one}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    """A registry that npm is configured for, of packages in tmp_path/served."""
    handler = type("Serving", (Registry,), {"folder": tmp_path / "served"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_userconfig", os.devnull)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@NPM
def test_npm_fetches_what_is_pinned_and_runs_nothing_of_it(
    tmp_path: Path, registry: type[Registry], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.icons.__main__, "resvg", lambda: None)
    ran = {"package.json": json.dumps({"name": "@iconify-json/one", "version": "1.0.0", "scripts": {
        when: f"touch {tmp_path}/ran" for when in ("prepack", "prepare", "preinstall", "postinstall", "postpack")
    }}).encode()}  # fmt: skip
    pin = package(tmp_path / "served", "one", icons("one"), ran)
    data.icons.fetch.fetch([pin], tmp_path, lambda *_: None)
    assert (tmp_path / pin.file).read_bytes() == (tmp_path / "served" / pin.file).read_bytes()
    assert not (tmp_path / "ran").exists()
    other = Pin("one", "1.0.0", "sha512-" + "A" * 86 + "==")
    monkeypatch.setattr(
        data.icons.fetch, "PINS", pinned(tmp_path / "sets.json", [other, package(tmp_path, "test", icons("test"))])
    )
    assert main(words(tmp_path / "a", tmp_path / "new")) == 2
    assert (
        "npm could not fetch @iconify-json/one@1.0.0 (code E404" in capsys.readouterr().err
    )  # the registry does not have it
    (tmp_path / "served" / "iconify-json-test-1.0.0.tgz").write_bytes(
        (tmp_path / "iconify-json-test-1.0.0.tgz").read_bytes()
    )
    assert main(words(tmp_path / "a", tmp_path / "new")) == 2
    assert "is not @iconify-json/one@1.0.0: its digest is" in capsys.readouterr().err


@NPM
def test_without_a_network_a_sentence_says_what_to_do(
    tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.icons.__main__, "resvg", lambda: None)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    assert main(words(tmp_path / "a", tmp_path / "new")) == 2
    said = capsys.readouterr().err
    assert "npm could not fetch @iconify-json/one@1.0.0 (code ECONNREFUSED" in said
    assert "connect this machine to npm's registry" in said
    assert "Traceback" not in said
    assert not (tmp_path / "a").exists()
