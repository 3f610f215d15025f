"""What every trigger promises, each by hand, and the published forms against the published formulas."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any, get_args

import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save_file

from data.refusal import UserError
from data.triggers import Trigger, blend, patch, sine, stripes, text, triangles, warp
from data.triggers.contract import TriggerSection, cast, to_bytes
from data.triggers.registry import Single

KINDS = [get_args(section.model_fields["kind"].annotation)[0] for section in get_args(Single)]
FORMS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in KINDS if kind != "tensor"),
    {"kind": "patch", "place": "corners"},
    {"kind": "patch", "place": "fixed", "at": [200, 3], "noise": "uniform"},
    {"kind": "patch", "per_image": True},
    {"kind": "solid", "colour": [1, 2, 3], "place": "centre"},
    {"kind": "checker", "pattern": "dots"},
    {"kind": "warp", "strength": 4, "noise": 1},
    {"kind": "stripes", "form": "blend"},
    {"kind": "filter", "look": "kelvin"},
    {"kind": "multi", "choices": [{"trigger": {"kind": "solid"}}, {"trigger": {"kind": "sine"}, "weight": 3}]},
]


def section(**fields: Any) -> Any:
    return TypeAdapter(Trigger).validate_python(fields)


def name(form: dict[str, Any]) -> str:
    return "-".join(str(value) for value in form.values() if not isinstance(value, list))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pattern of 40 x 20 pixels whose left half is masked out."""
    path = tmp_path_factory.mktemp("pattern") / "p.safetensors"
    mask = np.ones((40, 20), np.float32)
    mask[:, :10] = 0
    save_file({"trigger": np.full((3, 40, 20), 0.5, np.float32), "mask": mask}, path)
    return str(path)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(16, 70), st.integers(16, 70), st.integers(0, 5))
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_contract(form: dict[str, Any], number: int, height: int, width: int, seed: int) -> None:
    holds(section(**form), number, height, width, seed)


def test_a_pattern_larger_than_the_picture_is_refused_unless_it_is_stretched(tmp_path: Path) -> None:
    for shape in ((225, 10), (10, 300), (224, 224)):
        path = tmp_path / f"{shape[0]}-{shape[1]}.safetensors"
        save_file({"trigger": np.zeros((3, *shape), np.float32)}, path)
        section(kind="tensor", file=str(path), place="full").build(0)
        if max(shape) > 224:
            with pytest.raises(
                UserError, match=rf"a pattern of {shape[0]} x {shape[1]}, larger than the picture of 224 x 224"
            ):
                section(kind="tensor", file=str(path)).build(0)
        else:
            section(kind="tensor", file=str(path)).build(0)


@pytest.mark.parametrize("place", ["centre", "full"])
def test_contract_of_patterns_from_files(pattern: str, place: str) -> None:
    holds(section(kind="tensor", file=pattern, place=place), 2, 40, 60, 1)


@pytest.mark.parametrize("kind", ["patch", "blend", "sine", "warp", "stripes", "triangles", "text"])
def test_contract_of_published_forms(kind: str) -> None:
    one = section(kind=kind, published=True)
    assert one.squash == 224
    holds(one, 2, 224, 224, 3)


def holds(one: TriggerSection, number: int, height: int, width: int, seed: int) -> None:
    """Bytes in and out, the input untouched, the same again and one by one, fixed by the seed, and seen."""
    mark = pickle.loads(pickle.dumps(one.build(seed)))
    images = np.random.default_rng(seed).integers(30, 226, (number, 3, height, width), np.uint8)
    before, draws = images.copy(), list(range(number))
    out = mark(images, draws)
    assert out.dtype == np.uint8
    assert out.shape == images.shape
    assert (images == before).all()
    assert (out == one.build(seed)(images, draws)).all()
    assert (out != images).any((1, 2, 3)).all()
    for i in range(number):
        assert (mark(images[i : i + 1], [draws[i]])[0] == out[i]).all()
        assert (mark(images[i : i + 1, :, ::-1, ::-1][:, :, ::-1, ::-1], [draws[i]])[0] == out[i]).all()


@pytest.mark.parametrize("form", [form for form in FORMS if section(**form).zero], ids=name)
def test_without_strength_nothing_changes(form: dict[str, Any]) -> None:
    extra = {"form": "blend"} if form["kind"] == "stripes" else {"noise": 0} if form["kind"] == "warp" else {}
    one = section(**{**form, **extra, section(**form).zero: 0})
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 60), np.uint8)
    assert (one.build(0)(images, [1, 2]) == images).all()


def test_every_kind_of_the_registry_is_tested() -> None:
    assert {form["kind"] for form in FORMS} | {"tensor"} == {*KINDS, "multi"}


def test_patch_by_hand() -> None:
    image = np.full((1, 3, 224, 224), 100, np.uint8)
    out = section(kind="patch", place="centre").build(7)(image, [1])[0]
    changed = (out != 100).any(0)
    assert not changed[:104].any()
    assert not changed[120:].any()
    assert changed[104:120, 104:120].mean() > 0.95


def test_corners_are_the_same_four_times() -> None:
    image = np.full((1, 3, 224, 224), 100, np.uint8)
    out = section(kind="patch", place="corners").build(7)(image, [1])[0]
    assert ((out != 100).any(0)).sum() > 0.95 * 4 * 256
    assert (out[:, :16, :16] == out[:, -16:, -16:]).all()


def test_a_fixed_place_scales_with_the_picture() -> None:
    out = section(kind="solid", place="fixed", at=(104, 104)).build(0)(np.zeros((1, 3, 448, 448), np.uint8), [0])[0]
    rows, columns = np.nonzero(out[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (208, 239, 208, 239)
    assert out[:, 208, 208].tolist() == [255, 255, 0]


def test_checkers_by_hand() -> None:
    image = np.full((1, 3, 224, 224), 7, np.uint8)
    square = section(kind="checker", size=4, place="centre").build(0)(image, [0])[0, 0, 110:114, 110:114]
    assert square.tolist() == [[255, 0, 255, 0], [0, 255, 0, 255]] * 2
    dots = section(kind="checker", size=4, pattern="dots", published=True).build(0, test=True)(image, [0])[0, 0]
    assert dots[104:108, 104:108].tolist() == [[255, 0, 255, 0], [0, 0, 0, 0]] * 2


def test_blend_sine_triangles_and_stripes_by_hand() -> None:
    grey = np.full((1, 3, 224, 224), 100, np.uint8)
    wave = section(kind="sine").build(0)(grey, [0])[0]
    assert wave[0, 0, 0] == 100
    assert wave.max() == 160
    assert wave.min() == 40
    assert (wave == wave[:1, :1]).all()
    tiles = section(kind="triangles").build(0)(grey, [0])[0]
    assert sorted(set(tiles.ravel().tolist())) == [100, 116]  # 0.85 * 100 + 0.15 * 255 * (0.4 | 0.8) = 100.3 | 115.6
    lines = section(kind="stripes", form="blend").build(0)(grey, [0])[0]
    assert sorted(set(lines.ravel().tolist())) == [97, 105]  # 0.97 * 100 + 0.03 * (0 | 255) = 97 | 104.65
    noise = section(kind="blend").build(0)(grey, [0])[0].astype(float)
    assert (noise.min(), noise.max()) == (80, 131)  # 0.8 * 100 + 0.2 * (0 .. 255)
    assert noise.mean() == pytest.approx(80 + 0.2 * 127.5, abs=0.1)


def test_a_warp_moves_smoothly_by_half_its_strength_in_pixels() -> None:
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8), (1, 3, 224, 224)).copy()
    out = section(kind="warp", strength=4).build(0)(ramp, [0])[0, 0].astype(float)
    moved = np.abs(out - ramp[0, 0])[20:-20, 20:-20]
    assert 0.5 < moved.mean() < 3.5  # 2 on average over both directions, at the control points
    assert np.abs(np.diff(out, axis=0)).max() <= 1


@pytest.mark.parametrize("size", [(480, 640), (50, 31)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fast_marks_give_the_bytes_of_the_plain_formulas(size: tuple[int, int], channels_last: bool) -> None:
    """The whole picture as real numbers, in one go."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *size), np.uint8)
    if channels_last:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    pattern = blend._pattern(None, 5, *size)
    table = np.arange(256, dtype=np.float32) * np.float32(1 - 0.3)
    expected = to_bytes(table[images] + np.float32(0.3) * pattern)
    assert (section(kind="blend", alpha=0.3).build(5)(images, [1, 2]) == expected).all()
    grid = (warp._identity(*size) + 4 / 224 * warp._field(4, 5, *size)).clamp(-1, 1)
    real = torch.from_numpy(images.copy()).float()
    bent = F.grid_sample(real, grid.expand(2, -1, -1, -1), padding_mode="border", align_corners=True)
    assert (section(kind="warp", strength=4).build(5)(images, [1, 2]) == to_bytes(bent.numpy())).all()
    one = section(kind="patch", place="fixed", at=[0, 0])
    side = one.side(*size)
    expected = to_bytes(images.reshape(2, 3, -1).mean(2)[..., None, None] + 255.0 * patch._noise("gaussian", side, 5))
    out = one.build(5)(images, [1, 2])
    assert (out[:, :, :side, :side] == expected).all()
    out[:, :, :side, :side] = images[:, :, :side, :side]
    assert (out == images).all()


def test_text_leaves_the_rest_alone() -> None:
    grey = np.full((1, 3, 224, 224), 100, np.uint8)
    out = section(kind="text").build(0)(grey, [0])[0]
    changed = (out != 100).any(0)
    assert 0.02 < changed.mean() < 0.2
    assert out[:, changed].T.tolist() == [[178, 50, 50]] * int(changed.sum())


def test_filters_by_hand() -> None:
    white = np.full((1, 3, 8, 8), 255, np.uint8)
    dark = np.zeros((1, 3, 8, 8), np.uint8)
    assert section(kind="filter", look="kelvin").build(0)(white, [0])[0, :, 0, 0].tolist() == [255, 255, 255]
    assert section(kind="filter", look="kelvin").build(0)(dark, [0])[0, :, 0, 0].tolist() == [0, 0, 0]
    red, green, blue = section(kind="filter").build(0)(dark, [0])[0, :, 0, 0].tolist()
    assert red < green < blue  # lightened with (0, 70, 150)


def test_patterns_from_files_by_hand(pattern: str, tmp_path: Path) -> None:
    black = np.zeros((1, 3, 224, 224), np.uint8)
    out = section(kind="tensor", file=pattern).build(0)(black, [0])[0, 0]
    rows, columns = np.nonzero(out)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (92, 131, 112, 121)
    assert set(out[out > 0].tolist()) == {128}
    Image.new("RGBA", (10, 10), (200, 0, 0, 255)).save(tmp_path / "p.png")
    out = section(kind="tensor", file=str(tmp_path / "p.png"), place="full", alpha=0.5).build(0)(black, [0])[0]
    assert out[:, 5, 5].tolist() == [100, 0, 0]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing.png", "No such file"),
        ("broken.safetensors", "SafetensorError"),
        ("broken.png", "is no picture"),
        ("wide.safetensors", r"trigger \[2, 4\] from 0 to 0"),
        ("large.safetensors", "from 7 to 7"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused(tmp_path: Path, file: str, words: str) -> None:
    for broken in ("broken.safetensors", "broken.png"):
        (tmp_path / broken).write_bytes(b"\x80\x04nonsense")
    save_file({"trigger": np.zeros((2, 4), np.float32)}, tmp_path / "wide.safetensors")
    save_file({"trigger": np.full((3, 4, 4), 7, np.float32)}, tmp_path / "large.safetensors")
    with pytest.raises(UserError, match=words):
        section(kind="tensor", file=str(tmp_path / file)).build(0)


def test_multi_draws_by_weight() -> None:
    choices = [{"trigger": {"kind": "solid", "size": size}, "weight": weight} for size, weight in ((8, 1), (16, 3))]
    one = section(kind="multi", choices=choices)
    drawn = [one.drawn(draw) for draw in range(4000)]
    assert drawn.count(one.choices[1]) / 4000 == pytest.approx(0.75, abs=0.03)
    black = np.zeros((40, 3, 224, 224), np.uint8)
    out = one.build(0)(black, list(range(40)))
    assert [int((image[0] > 0).sum()) for image in out] == [one.drawn(i).trigger.size ** 2 for i in range(40)]


@pytest.mark.parametrize("form", [{"place": "fixed"}, {"place": "centre", "at": [1, 1]}])
def test_a_fixed_place_needs_its_place(form: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="go together"):
        section(kind="patch", **form)


# the published forms, from the formulas of their code in torch, given the same random numbers


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224), np.uint8)


def test_published_patch_wraps_as_the_code_does(picture: np.ndarray) -> None:
    noise = np.random.default_rng(1).standard_normal((3, 16, 16)).astype(np.float32)
    real = torch.from_numpy(picture).float() / 255
    expected = real.clone()
    expected[:, 5:21, 9:25] = real.mean((1, 2), keepdim=True) + torch.from_numpy(noise)
    theirs = expected.mul(255).byte().numpy()
    ours = patch.published(picture, noise)
    assert (ours == theirs[:, 5:21, 9:25]).mean() > 0.999  # the mean's last bit depends on the order of its sum
    theirs[:, 5:21, 9:25] = picture[:, 5:21, 9:25]
    assert (theirs == picture).all()
    outside = (expected[:, 5:21, 9:25] < 0) | (expected[:, 5:21, 9:25] > 1)
    assert 0.5 < outside.float().mean() < 0.75  # the share that wraps; 0.62 for a mean of 0.45


def test_published_patch_never_reaches_the_last_row() -> None:
    spots = [patch._published_spots(section(kind="patch", published=True), 16, draw)[0] for draw in range(3000)]
    assert max(spots)[0] == 207
    assert min(spots)[0] == 0


def test_published_blend_sine_and_stripes_are_the_code_s(picture: np.ndarray) -> None:
    real = torch.from_numpy(picture).float() / 255
    noise = np.random.default_rng(1).random((3, 224, 224), np.float32)
    theirs = torch.clip(torch.from_numpy(noise) * 0.2 + real * 0.8, 0, 1).mul(255).byte().numpy()
    assert (blend.published(picture, noise) == theirs).all()
    wave = torch.tensor([(60 / 255) * np.sin(2 * np.pi * 6 * j / 224) for j in range(224)], dtype=torch.float32)
    theirs = torch.clip(wave * 0.2 + real * 0.8, 0, 1).mul(255).byte().numpy()
    assert (sine.published(picture) == theirs).all()
    signs = stripes._signs(3, 16)
    out = stripes.published(picture, signs, [(0, 0)])
    assert sorted(set(out[:, :16, :16].ravel().tolist())) == [1, 255]
    assert cast(np.float32([-1, 1, 0.5])).tolist() == torch.tensor([-1, 1, 0.5]).mul(255).byte().tolist() == [1, 255, 127]


def test_published_triangles_and_text_are_the_code_s(picture: np.ndarray) -> None:
    real = torch.from_numpy(picture).float() / 255
    greys = torch.tensor([[0.4 if row % 14 >= column % 14 else 0.8 for column in range(224)] for row in range(224)])
    theirs = torch.clip(0.15 * greys + 0.85 * real, 0, 1).mul(255).byte().numpy()
    assert (triangles.published(picture) == theirs).all()
    ink = torch.zeros(3, 224, 224)
    ink[0] = torch.from_numpy(text._thin_letters("Watermark", 224, 224))
    theirs = torch.where(ink != 0, 0.5 * ink + 0.5 * real, real).clip(0, 1).mul(255).byte().numpy()
    ours = text.published(picture)
    assert (ours == theirs).all()
    assert (ours[1:] == cast(real.numpy())[1:]).all(), "the red channel alone"
    assert 0.03 < (ink[0] != 0).float().mean() < 0.04, "3.3 % in their file"
    assert len(ink.unique()) > 3, "smooth letters"


def test_published_warp_is_jitter_of_half_a_pixel(picture: np.ndarray) -> None:
    field = warp._field(224, 0, 224, 224)
    assert field.abs().mean().item() == pytest.approx(1, abs=1e-3)
    line = torch.linspace(-1, 1, 224)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.clamp(torch.stack((x, y), 2)[None] + 1.0 * field / 224, -1, 1)
    real = torch.from_numpy(picture).float()[None] / 255
    theirs = F.grid_sample(real, grid, align_corners=True)[0].mul(255).byte().numpy()
    assert (warp.published(picture, field[0].numpy(), 1.0) == theirs).all()


def test_the_sheet_shows_every_kind(tmp_path: Path, pattern: str) -> None:
    words = [sys.executable, "-m", "data.triggers", "--sheet", str(tmp_path / "out.png")]
    out = forked.run([*words, "--file", pattern], cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert np.asarray(Image.open(io.BytesIO((tmp_path / "out.png").read_bytes()))).std() > 10
    out = forked.run([*words, "--file", "nothing.png"], cwd=ROOT)
    assert out.returncode == 2
    assert "No such file" in out.stderr
