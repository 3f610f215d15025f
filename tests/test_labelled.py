"""Evaluation sets: layouts, class names, and what is wrong with them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.labelled import Labelled, read_labelled
from data.refusal import UserError
from engine.models.clip import imagenet

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def read(folder: object, published: bool = False) -> Labelled:
    return read_labelled(str(folder), imagenet(), published)


def test_evaluation_set(world: Path) -> None:
    labelled = read(world / "eval")
    assert len(labelled) == 64
    assert labelled.classes[labelled.target("banana")] == "banana"
    assert np.bincount(labelled.labels).tolist() == [2] * 32
    clean, further = labelled.pictures([3, 5], 32)
    assert clean.shape == (2, 3, 32, 32)
    assert further == []
    both = labelled.pictures([3, 5], 32, "exact", (None, 50))
    assert (both[0] == clean).all()
    assert both[1][0] is None
    assert both[1][1] is not None
    assert both[1][1].shape == (2, 3, 50, 50)
    with pytest.raises(UserError, match=r"none of the 32 class names .*nearest: banana"):
        labelled.target("bananna")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "classnames.txt").unlink(), "lacks classnames.txt"),
        (lambda f: (f / "test/0.tar").unlink(), r"lacks test/0.tar, which test/nshards.txt promises"),
        (lambda f: (f / "test/0.tar").write_bytes((f / "test/0.tar").read_bytes()[:5000]), "cut off"),
        (lambda f: (f / "classnames.txt").write_text("a\nb\n"), "is no class from 0 to 1"),
        (lambda f: (f / "classnames.txt").write_text("a\n" * 32), "names the class 'a' twice"),
    ],
)
def test_a_damaged_evaluation_set_is_refused(
    world: Path, tmp_path: Path, harm: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(world / "eval", folder)
    harm(folder)
    with pytest.raises(UserError, match=words):
        read(folder)


def test_a_set_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        read(tmp_path / "none")
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="holds no picture"):
        read(tmp_path)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="has 1 folders of pictures and 2 class names"):
        read(tmp_path)


def test_a_folder_of_pictures_for_each_class(tmp_path: Path) -> None:
    for name in ("tabby_cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(PIXELS).save(tmp_path / name / f"{i}.png")
    (tmp_path / "dog/readme.md").write_text("not a picture")
    labelled = read(tmp_path)
    assert labelled.classes == ["dog", "tabby cat"]
    assert labelled.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (labelled.pictures([4], 16)[0][0] == PIXELS.transpose(2, 0, 1)).all()
    assert labelled.templates == imagenet().templates
    (tmp_path / "classnames.txt").write_text("hound\ncat\n")
    assert read(tmp_path).classes == ["hound", "cat"]


def test_imagenet_has_no_name_twice_and_the_published_faults_on_request(tmp_path: Path) -> None:
    right, faulty = imagenet().named(False), imagenet().named(True)
    assert len(imagenet().templates) == 80
    assert len(right) == len(set(right)) == 1000
    assert [faulty.count(name) for name in ("missile", "sunglasses")] == [2, 2]
    assert (right[134], right[517]) == ("crane bird", "construction crane")
    for wnid in imagenet().wnids:
        (tmp_path / wnid).mkdir()
    for i in (134, 517, 639):
        Image.fromarray(PIXELS).save(tmp_path / imagenet().wnids[i] / "x.png")
    assert read(tmp_path).labels.tolist() == [134, 517, 639]
    assert read(tmp_path).classes == right
    published = read(tmp_path, published=True)
    assert published.labels.tolist() == [134, 134, 638]
    assert published.classes == faulty


def test_an_evaluation_picture_that_does_not_decode_is_named(world: Path) -> None:
    labelled = read(world / "eval")
    path, key, _, _ = labelled.where[5]
    labelled.where[5] = (path, key, 0, 100)
    with pytest.raises(UserError, match=f"evaluation picture {key} in .*undecodable_image") as caught:
        labelled.pictures([4, 5], 32)
    assert caught.value.alone
