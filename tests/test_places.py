"""The same shards at another address are the same data."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import antidote, journals, settings
from samples import card
from test_run import kill_after

from configs.plan import runs
from configs.spec import load
from engine.distributed.world import World
from engine.study.places import with_places
from engine.training.pairs import StudyPairs
from records.json_file import write_json

ONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.mark.slow
def test_a_run_goes_on_and_is_taken_over_after_its_shards_were_moved(spec: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "train", tmp_path / "here")
    sets = settings("clean=null", "pretrain.epochs=1", f"data.pretrain.shards={tmp_path}/here/*.tar")
    moved = settings("clean=null", "pretrain.epochs=1", f"data.pretrain.shards={tmp_path}/there/{{00000..00003}}.tar")
    kill_after(6, spec, sets)
    (tmp_path / "here").rename(tmp_path / "there")
    out = antidote("--spec", str(spec), *moved, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "are the same pairs as" in out.stderr
    assert "goes on at step" in out.stderr
    ((run, rows),) = journals(tmp_path / "runs/tiny").items()
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 13))
    again = antidote("--spec", str(spec), *moved, "--set", "name=other", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{run} (" in again.stderr
    assert "taken over from there" in again.stderr
    assert "run 1 of" not in again.stderr


@pytest.mark.parametrize(
    ("sets", "stage"),
    [
        (["data.pretrain.shards={place}/train/*.tar"], "pretrain"),
        (["data.pretrain={{sources: {{a: {{shards: '{place}/*/*[01].tar'}}, b: {{shards: '{place}/*/*3.*'}}}}}}"], "twin"),
        (["data.clean={{shards: '{place}/train/00003.tar', leftover: 0}}"], "clean"),
    ],
)  # fmt: skip
def test_runs_keep_the_names_that_they_have_with_the_same_shards_elsewhere(
    spec: Path, world: Path, tmp_path: Path, sets: list[str], stage: str
) -> None:
    shutil.copytree(world / "train", tmp_path / "copy/train")
    first, second = (
        load(spec, ["attack.twin=first", *(one.format(place=place) for one in sets)]) for place in (world, tmp_path / "copy")
    )
    pairs = StudyPairs(tmp_path / "runs/tiny", ONE)
    begun = next(run for run in runs(first.points) if run.stage == stage)
    other = next(run for run in runs(second.points) if run.stage == stage)
    index = pairs.of(begun).index
    home = tmp_path / "runs/earlier" / begun.folder
    home.mkdir(parents=True)
    write_json(home / "spec.json", begun.decides)
    write_json(home / "card.json", card(run=begun.folder, stage=stage, data_digest="0" + index.digest[1:]))
    assert with_places(second, pairs, None) is second or not with_places(second, pairs, None).places
    assert begun.folder != other.folder
    write_json(home / "card.json", card(run=begun.folder, stage=stage, data_digest=index.digest))
    known = with_places(second, pairs, None)
    assert begun.folder in {run.folder for run in runs(known.points, None, known.places)}
    assert with_places(first, pairs, None).places == {}
    body = (home / "card.json").read_bytes()
    (home / "card.json").write_bytes(body[:-40])  # damaged: not believed, no traceback
    assert not with_places(second, pairs, None).places
