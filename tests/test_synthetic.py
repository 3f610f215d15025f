"""Drawn worlds: same seed, same bytes; what they say is what they show."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from data.outlines import KINDS
from data.refusal import UserError
from data.synthetic import WORLDS, SyntheticWorld, main, write_world

SMALL = replace(WORLDS["lab"], pairs=60, tests=64, seed=5, pairs_per_shard=32, captioned=8)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    assert write_world(tmp_path / "a", SMALL)
    assert write_world(tmp_path / "b", SMALL, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    write_world(tmp_path / "c", replace(SMALL, seed=6))
    assert contents(tmp_path / "c")["train/00000.tar"] != contents(tmp_path / "a")["train/00000.tar"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset 1.0.2 leaves its file open
def test_training_shards_are_webdataset_and_img2dataset(tmp_path: Path) -> None:
    write_world(tmp_path / "w", SMALL)
    rows = list(webdataset.WebDataset(str(tmp_path / "w/train/00000.tar"), shardshuffle=False))
    assert len(rows) == 32
    assert {"jpg", "txt", "json", "__key__"} <= rows[0].keys()
    for row in rows:
        facts = json.loads(row["json"])
        assert facts["kind"] in row["txt"].decode()
        assert facts["caption"] == row["txt"].decode()
        assert facts["key"] == row["__key__"]
        assert Image.open(io.BytesIO(row["jpg"])).size == (32, 32)
    told = [json.loads(line) for line in (tmp_path / "w/labels.jsonl").read_text().splitlines()]
    assert [KINDS[one["label"]] for one in told[:32]] == [json.loads(row["json"])["kind"] for row in rows]
    assert [one["key"] for one in told[:32]] == [row["__key__"] for row in rows]


def test_labelled_set_is_balanced_and_in_clip_benchmarks_layout(tmp_path: Path) -> None:
    write_world(tmp_path / "w", SMALL)
    folder = tmp_path / "w/eval"
    assert folder.joinpath("classnames.txt").read_text().split() == list(KINDS)
    assert all("{c}" in line for line in (folder / "zeroshot_classification_templates.txt").read_text().splitlines())
    assert int((folder / "test/nshards.txt").read_text()) == 2
    labels = []
    for shard in (0, 1):
        with tarfile.open(folder / f"test/{shard}.tar") as tar:
            labels += [int(tar.extractfile(m).read()) for m in tar if m.name.endswith(".cls")]  # type: ignore[union-attr]
    assert sorted(labels) == sorted([*range(len(KINDS))] * 2)


def test_the_worlds_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path / "w"), "--pairs", "20", "--tests", "32", "--captioned", "8"]
    assert main([*words, "--world", "demo"]) == 0
    digest = hashlib.sha256()  # of the bytes as they were when the demo's world was the only one
    for name, content in contents(tmp_path / "w").items():
        digest.update(b"" if name.endswith(".png") else name.encode() + content)
    assert digest.hexdigest()[:16] == "b1fbd628a2604a74"
    assert main(words) == 0  # the demo's is the one that is made without a name
    assert WORLDS["demo"] == SyntheticWorld(pairs=6000, tests=960, pixels=64, seed=0, pairs_per_shard=500, captioned=512)
    capsys.readouterr()
    assert main([*words, "--world", "lap"]) == 2
    assert capsys.readouterr().err == "error: --world is lap; expected demo or lab\n"


def test_kinds() -> None:
    assert len(KINDS) >= 24
    assert "banana" in KINDS
    assert len(set(KINDS)) == len(KINDS)


def test_an_existing_world_is_reused_and_another_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path / "w"), "--pairs", "20", "--tests", "32", "--pixels", "32"]
    assert main(words) == 0
    before = contents(tmp_path / "w")
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert contents(tmp_path / "w") == before
    (tmp_path / "w/labels.jsonl").unlink()  # of a world that was made before it had them
    assert main(words) == 0
    assert contents(tmp_path / "w") == before
    assert main([*words, "--seed", "9"]) == 2
    assert "delete it or name another folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="at least 1 pair"):
        write_world(tmp_path / "v", SyntheticWorld(pairs=0))
