"""Cleaning with an audit's stamp: which pictures carry it, what the model is told, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import antidote, journals, settings
from safetensors.numpy import save_file
from sections import features, section
from test_pipeline import pairs_of

from configs.plan import Run
from configs.spec import load
from data.refusal import UserError
from data.shards import Index, read_index
from data.stamped import Stamped, stamped
from engine.training.inputs import inverter
from objectives.exchange import SINGLE_RANK, Exchange


def write_stamp(path: Path, side: int = 32, value: float = 1.0) -> Path:
    """A stamp that paints the upper left quarter."""
    mask = np.zeros((side, side), np.float32)
    mask[: side // 2, : side // 2] = 1
    save_file({"trigger": np.full((3, side, side), value, np.float32), "mask": mask}, path)
    return path


@pytest.fixture
def marks(tmp_path: Path) -> Stamped:
    return stamped(str(write_stamp(tmp_path / "stamp.safetensors")), 0.25, 32)


@pytest.fixture
def index(world: Path, tmp_path: Path) -> Index:
    return read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False)


def painted(pictures: torch.Tensor) -> torch.Tensor:
    """bool [n]: which pictures [n, 3, 32, 32] carry the stamp."""
    return (pictures[:, :, :16, :16] == 255).flatten(1).all(1)


def test_the_share_of_pictures_carries_the_stamp_others_in_each_epoch(marks: Stamped) -> None:
    grey = np.full((3, 32, 32), 9, np.uint8)
    drawn = np.array([[painted_one(marks.put(grey, 0, f"k{i}", epoch)) for i in range(2000)] for epoch in (1, 2)])
    assert np.abs(drawn.mean(1) - 0.25).max() < 0.03  # 3 standard deviations
    assert abs((drawn[0] & drawn[1]).mean() - 0.25**2) < 0.02  # an epoch tells nothing of the next
    assert (grey == 9).all()
    assert not any(painted_one(replace(marks, share=0.0).put(grey, 0, f"k{i}", 1)) for i in range(50))
    assert all(painted_one(replace(marks, share=1.0).put(grey, 0, f"k{i}", 1)) for i in range(50))


def painted_one(picture: np.ndarray) -> bool:
    return bool(painted(torch.from_numpy(picture)[None])[0])


def test_a_batch_differs_from_the_plain_one_by_the_stamp_alone_on_any_number_of_ranks(index: Index, marks: Stamped) -> None:
    def pairs(rank: int = 0, ranks: int = 1, with_stamp: bool = True) -> object:
        out = pairs_of(index, rank, ranks, (2, 1), poison=0)
        out.reading = replace(out.reading, stamped=marks if with_stamp else None)
        return out[1, 2]

    plain, whole = pairs(with_stamp=False), pairs()
    carries = painted(whole.images[:, 0])  # type: ignore[attr-defined]
    assert 0 < int(carries.sum()) < 16
    own = marks.mark(plain.images[:, 0].numpy(), [0] * 24)  # type: ignore[attr-defined]
    expected = torch.where(carries[:, None, None, None], torch.from_numpy(own), plain.images[:, 0])  # type: ignore[attr-defined]
    assert torch.equal(whole.images[:, 0], expected)  # type: ignore[attr-defined]
    assert torch.equal(whole.images[~carries], plain.images[~carries])  # type: ignore[attr-defined]
    assert (whole.images[carries, 1] != plain.images[carries, 1]).flatten(1).any(1).all()  # type: ignore[attr-defined]
    assert torch.equal(whole.tokens, plain.tokens)  # type: ignore[attr-defined]  (captions stay true)
    parts = [pairs(rank, 3).images for rank in range(3)]  # type: ignore[attr-defined]
    assert torch.equal(torch.cat(parts), whole.images)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("within", "like"), [(0.0, {"kind": "mmcl"}), (0.5, {"kind": "cleanclip", "within": 0.5})])
def test_the_loss_is_mmcls_or_cleanclips(within: float, like: dict[str, object]) -> None:
    of, other = section({"kind": "inverted", "stamp": "x", "within": within}), section(like)
    assert of.views == other.views
    given = features(other)
    losses = [one.build()(given, Exchange(SINGLE_RANK))["loss"] for one in (of, other)]
    assert torch.equal(*losses)


def run_of(spec: Path, *words: str) -> Run:
    """The cleaning of a spec with these settings."""
    return Run("clean", load(spec, list(words)).spec, (), None)


def test_the_fingerprint_tells_which_stamp_was_meant(spec: Path) -> None:
    stamp = spec.parent / "stamp.safetensors"
    words = f"clean.objective={{kind: inverted, stamp: {stamp}}}"
    prints = []
    for value in (1.0, 0.5, 1.0):
        write_stamp(stamp, value=value)
        prints.append(run_of(spec, words).decides["clean"]["objective"]["digest"])
    assert prints[0] == prints[2] != prints[1]
    in_sum = f"clean.objective={{kind: sum, parts: [{{objective: {{kind: inverted, stamp: {stamp}}}}}]}}"
    assert run_of(spec, in_sum).decides["clean"]["objective"]["parts"][0]["objective"]["digest"] == prints[0]
    with pytest.raises(UserError, match="objective.digest is 000000000000, but .* has .*; name the right file"):
        load(spec, [f"clean.objective={{kind: inverted, stamp: {stamp}, digest: '000000000000'}}"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "objective.stamp .*: No such file or directory"),
        (lambda path: write_stamp(path, 16), "is of 16 x 16 pixels, but the model takes pictures of 32 x 32; give a stamp"),
        (lambda path: write_stamp(path, 64), "is of 64 x 64 pixels, but the model takes pictures of 32 x 32; give a stamp"),
        (lambda path: path.write_bytes(b"x"), "objective.stamp .*; expected a .safetensors with `trigger`"),
        (lambda path: write_stamp(path, 32, 2.0), "objective.stamp .* holds trigger .*; expected a .safetensors"),
    ],
)
def test_a_stamp_that_can_not_be_used_is_refused(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    make(tmp_path / "stamp.safetensors")
    with pytest.raises(UserError, match=words):
        stamped(str(tmp_path / "stamp.safetensors"), 0.2, 32)


def test_two_stamps_in_one_sum_are_refused(spec: Path) -> None:
    part = "{objective: {kind: inverted, stamp: x.safetensors}}"
    with pytest.raises(UserError, match="has 2 parts of kind inverted; a picture carries one stamp"):
        inverter(run_of(spec, f"clean.objective={{kind: sum, parts: [{part}, {part}]}}"))


@pytest.mark.slow
def test_a_cleaning_with_a_stamp_runs_the_same_on_two_ranks_and_differs_from_one_without(spec: Path) -> None:
    stamp = write_stamp(spec.parent / "stamp.safetensors")
    kinds = f"[{{kind: inverted, stamp: {stamp}, share: 0.5}}, {{kind: mmcl}}]"
    words = settings("pretrain.epochs=1", "clean.epochs=1", f"sweep={{clean.objective: {kinds}}}")
    losses = []
    for name, processes in (("one", 0), ("two", 2)):
        (spec.parent / name).mkdir()
        out = antidote("--spec", str(spec), *words, cwd=spec.parent / name, processes=processes)
        assert out.returncode == 0, out.stderr
        rows = journals(spec.parent / name / "runs/tiny")
        losses.append({run: [row["loss"] for row in of if row["kind"] == "step"] for run, of in rows.items()})
    for run, values in losses[0].items():
        assert losses[1][run] == pytest.approx(values, rel=1e-4)
    cleanings = [values for run, values in losses[0].items() if run.startswith("clean")]
    assert cleanings[0] != cleanings[1]
