"""Labelled pictures in place of pairs: what a batch holds, what is refused, and a whole study that cleans on them."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SELDOM, antidote, journals, settings
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file

from configs.plan import runs
from configs.spec import load
from data.augmentation.augment import Augment
from data.labelled import Labelled, read_labelled
from data.labelled_pairs import LabelledPairs
from data.loader import Workers
from data.pipeline import Reading, batches
from data.refusal import UserError
from data.sources import Data
from engine.distributed.world import World
from engine.estimate.dry_run import dry_run
from engine.estimate.gpus import Assumed
from engine.estimate.memory import model_size
from engine.models.clip import imagenet
from engine.models.tokenizer import Tokenizer
from engine.training.inputs import StudyInputs, prepare_inputs

NONE = Augment(synonyms="none")
ONE = World(0, 1, 0, 1, torch.device("cpu"))
TAUGHT = "clean.objective={kind: supervised, classes: 32}"


def labelled(folder: Path) -> Labelled:
    return read_labelled(str(folder), imagenet())


def pictures_of(
    folder: Path, rank: int = 0, ranks: int = 1, batch: int = 12, augment: Augment = NONE, count: int | None = None
) -> LabelledPairs:
    given = {"pretrain": {"shards": "x"}, "test": {}, "lanes": 4, "clean": {"labelled": str(folder), "pairs": count}}
    data = TypeAdapter(Data).validate_python(given)
    reading = Reading(3, rank, ranks, batch, (1, 0), 32, augment)
    return LabelledPairs(str(folder), labelled(folder), data, reading, Tokenizer("test-vit"))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three classes of 8 pictures; each picture's colour is its class and number."""
    for label, name in enumerate(("cat", "dog", "moon")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40, 36), (80 * label, 30 * i, 5)).save(tmp_path / f"set/{name}/{name}{i}.png")
    return tmp_path / "set"


def test_a_batch_of_both_layouts_has_pictures_labels_and_no_captions(world: Path, folders: Path) -> None:
    for folder, total in ((world / "eval", 64), (folders, 24)):
        of, told = pictures_of(folder), labelled(folder)
        assert (len(of), len(of.index), of.steps) == (total, total, total // 12)
        own = {key: (label, row) for row, ((_, key, _, _), label) in enumerate(zip(told.where, told.labels, strict=True))}
        batch = pickle.loads(pickle.dumps(of))[1, 0]
        assert batch.images.shape == (12, 1, 3, 32, 32)
        assert batch.tokens.shape == (12, 0, 16)
        assert batch.first().tokens.shape == (12, 0, 16)
        assert not batch.poisoned.any()
        for image, key, sample in zip(batch.images, batch.keys, batch.samples, strict=True):
            label, row = own[key]
            assert of.labels[sample] == label
            assert (image[0].numpy() == told.pictures([row], 32)[0][0]).all()


def test_every_picture_comes_once_an_epoch_and_classes_are_mixed(folders: Path) -> None:
    of = pictures_of(folders, batch=8)
    keys = [batch.keys for _, batch in batches(of, 1, 0, Workers(0))]
    assert sorted(sum(keys, [])) == sorted(key for _, key, _, _ in of.where)
    assert all(len({key.split("/")[0] for key in part}) > 1 for part in keys)


def test_ranks_share_a_batch_and_its_first_view_may_be_augmented(folders: Path) -> None:
    cpu, hole = torch.device("cpu"), Augment(first=("flip", "cutout"))
    whole = pictures_of(folders, augment=hole)[1, 1]
    parts = [pictures_of(folders, rank, 3, augment=hole)[1, 1] for rank in range(3)]
    assert torch.equal(torch.cat([part.pictures(cpu) for part in parts]), whole.pictures(cpu))
    assert torch.equal(torch.cat([part.samples for part in parts]), whole.samples)
    assert not torch.equal(whole.pictures(cpu), pictures_of(folders)[1, 1].pictures(cpu))
    assert whole.pictures(cpu).shape == (12, 1, 3, 32, 32)


def test_how_many_are_drawn_by_name(folders: Path) -> None:
    of = pictures_of(folders, batch=4, count=6)
    drawn = {of.index.keys[of.sample(row)] for row in range(6)}
    assert (len(of), len(drawn)) == (6, 6)
    more = pictures_of(folders, batch=4, count=9)
    assert drawn < {more.index.keys[more.sample(row)] for row in range(9)}
    with pytest.raises(UserError, match=r"data.clean.pairs is 25, but data.clean.labelled = .* holds 24 pictures; lower it"):
        pictures_of(folders, count=25)


def test_the_digest_depends_on_names_places_and_labels_not_on_where_the_folder_lies(folders: Path) -> None:
    first = pictures_of(folders).index.digest
    shutil.copytree(folders, folders.parent / "copy")
    assert pictures_of(folders.parent / "copy").index.digest == first
    changes: list[Callable[[], Any]] = [
        lambda: (folders / "cat/cat0.png").rename(folders / "cat/cat9.png"),
        lambda: Image.effect_noise((40, 36), 50).save(folders / "cat/cat1.png"),
        lambda: (folders / "aaa").mkdir(),  # a class before the others: every label is one more
    ]
    seen = [first]
    for change in changes:
        change()
        seen.append(pictures_of(folders).index.digest)
    assert len(set(seen)) == 4


def test_a_picture_that_does_not_decode_is_replaced_with_its_label(folders: Path) -> None:
    (folders / "dog/dog3.png").write_bytes(b"<html>")
    of = pictures_of(folders, batch=24)
    batch = of[1, 0]
    assert batch.skipped == [(str(folders), "dog/dog3", "undecodable_image")]
    names = np.array(["cat", "dog", "moon"])[of.labels[batch.samples.numpy()]]
    assert [key.split("/")[0] for key in batch.keys] == names.tolist()


def test_two_pictures_of_one_name_are_refused(folders: Path) -> None:
    Image.new("RGB", (40, 36)).save(folders / "cat/cat0.jpg")
    with pytest.raises(UserError, match=r"holds two pictures named cat/cat0 .*cat0.jpg, .*cat0.png\); rename one"):
        pictures_of(folders)


@pytest.mark.parametrize(
    ("stage", "sets", "words"),
    [
        (
            "pretrain",
            ["pretrain.objective={kind: supervised, classes: 32}"],
            "pretrain.objective is supervised, which learns",
        ),
        ("clean", [TAUGHT], "clean.objective is supervised, but data.clean.labelled is not given"),
        ("clean", ["data.clean.labelled={world}/eval"], "clean.objective is mmcl_ssl, which reads captions"),
        (
            "clean",
            ["data.clean.labelled={world}/eval", "clean.objective={kind: deep_cluster}"],
            "clean.objective is deep_cluster, which reads captions",
        ),
        (
            "clean",
            ["data.clean.labelled={world}/eval", "clean.objective={kind: supervised, classes: 31}"],
            "clean.objective.classes is 31, but data.clean.labelled = {world}/eval has 32 classes; set classes to 32",
        ),
        ("clean", [TAUGHT, "data.clean.labelled=none"], "data.clean.labelled none is no folder"),
        ("clean", [TAUGHT, "data.clean.labelled={world}/eval", "data.clean.pairs=65"], "holds 64 pictures; lower it"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: Path, world: Path, stage: str, sets: list[str], words: str) -> None:
    loaded = load(spec, [one.replace("{world}", str(world)) for one in sets])
    run = next(run for run in runs(loaded.points) if run.stage == stage)
    expected = words.replace("{world}", str(world)).replace("mmcl_ssl", loaded.spec.clean.objective.kind)  # type: ignore[union-attr]
    with pytest.raises(UserError) as caught:
        prepare_inputs(run, StudyInputs(spec.parent / "runs/tiny", ONE))
    assert expected in str(caught.value)
    assert ";" in str(caught.value)


def test_a_forecast_counts_the_pictures_or_believes_the_spec(spec: Path, world: Path) -> None:
    def shown(*sets: str) -> list[str]:
        loaded = load(spec, [TAUGHT, *sets])
        machine = Assumed(1, None)
        shared = StudyInputs(spec.parent / "runs/tiny", machine.world, spec.parent)
        text = dry_run(loaded, runs(loaded.points), shared, machine)
        cells = next(line for line in text.splitlines() if "supervised" in line).split("│")[3:5]
        return [cell.strip() for cell in cells] + [line for line in text.splitlines() if "counting on" in line]

    assert shown(f"data.clean.labelled={world}/eval", "data.clean.pairs=40") == ["2", "40"]
    assert shown(f"data.clean.labelled={world}/eval", "data.clean.pairs=null") == ["4", "64"]
    absent = "data.clean.labelled none is no folder: counting on data.clean.pairs = "
    assert shown("data.clean.labelled=none", "data.clean.pairs=32") == ["2", "32", f"{absent}32"]
    assert shown("data.clean.labelled=none", "data.clean.pairs=null") == ["?", "?", f"{absent}None"]
    pictures, both = (model_size("test-vit", views, torch.float32) for views in ((1, 0), (1, 1)))
    assert pictures.learning < pictures.parameters == both.learning
    assert pictures.kept.pair < both.kept.pair


def test_a_study_cleans_on_labelled_pictures_and_leaves_the_text_tower(spec: Path, world: Path) -> None:
    """One process in whole batches, two at ZeRO 2 in micro-batches: the same journal, the text tower's bits of the start."""
    words = settings(TAUGHT, f"data.clean.labelled={world}/eval", "pretrain.epochs=1", "clean.epochs=2")
    found = []
    for processes_, more in ((0, []), (2, ["machine.zero=2", "machine.micro_batch=4"])):
        folder = spec.parent / str(processes_)
        folder.mkdir()
        out = antidote("--spec", str(spec), *SELDOM, *words, *settings(*more), cwd=folder, processes=processes_)
        assert out.returncode == 0, out.stderr
        study = folder / "runs/tiny"
        start, end = (load_file(next(study.glob(f"{stage}-*/weights.safetensors"))) for stage in ("pretrain", "clean"))
        still = {name for name, value in start.items() if torch.equal(value, end[name])}
        assert still == {name for name in start if not name.startswith("visual.")}
        card = json.loads(next(study.glob("clean-*/card.json")).read_text())
        assert (card["pairs"], card["poisoned_pairs"]) == (64, 0)
        found.append(journals(study))
    assert found[0].keys() == found[1].keys()
    for name, rows in found[0].items():
        for a, b in zip(rows, found[1][name], strict=True):
            assert a.keys() - {"grad_norm"} == b.keys() - {"grad_norm"}
            assert {k: v for k, v in a.items() if isinstance(v, str | list)} == {
                k: v for k, v in b.items() if isinstance(v, str | list)
            }
            numbers = [[v for k, v in row.items() if k != "grad_norm" and not isinstance(v, str | list)] for row in (a, b)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-5), (name, a["step"])
    steps = [row for name, rows in found[0].items() if "clean" in name for row in rows if row["kind"] == "step"]
    assert len(steps) == 8
    assert {"loss", "supervised", "right"} <= steps[0].keys()
    assert float(steps[0]["loss"]) == pytest.approx(np.log(32), abs=0.05)
