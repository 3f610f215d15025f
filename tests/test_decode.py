"""Bytes to pixels and words, and every way in which bytes can be bad."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import decode
from data.decode import DecodeError


def image_bytes(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with structure at every scale."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(small) + draw.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb_of_the_asked_size(mode: str) -> None:
    body = image_bytes(Image.new(mode, (50, 30)), "JPEG" if mode == "CMYK" else "PNG")
    out = decode.picture(body, 16)
    assert out.dtype == np.uint8
    assert out.shape == (3, 16, 16)


def test_the_centre_is_cut_out() -> None:
    image = Image.new("RGB", (48, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    assert decode.picture(image_bytes(image), 16).reshape(3, -1).max(1).tolist() == [0, 0, 255]


def by_pillow(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's evaluation transform as torchvision does it on a Pillow picture."""
    short = min(image.size)
    sides = tuple(int(size * side / short) for side in image.size)
    image = image.resize(sides, Image.Resampling.BICUBIC) if short != size else image
    left, top = (int(round((side - size) / 2)) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 500), st.integers(20, 500), st.sampled_from(["PNG", "JPEG", "WEBP"]), st.sampled_from([32, 64]))
def test_exact_pictures_are_pillows_to_one_level(width: int, height: int, kind: str, size: int) -> None:
    body = image_bytes(noise(width, height), kind)
    expected = by_pillow(Image.open(io.BytesIO(body)).convert("RGB"), size)
    out = decode.picture(body, size)
    assert np.abs(out.astype(int) - expected).max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(65, 500), st.integers(65, 500), st.integers(1, 9), st.integers(0, 99))
def test_hard_edges_are_pillows_to_two_levels_and_nearly_all_to_one(width: int, height: int, side: int, seed: int) -> None:
    fields = np.random.default_rng(seed).integers(0, 2, (height // side + 1, width // side + 1, 3), np.uint8)
    image = Image.fromarray(np.kron(255 * fields, np.ones((side, side, 1), np.uint8))[:height, :width])
    levels = np.abs(decode.picture(image_bytes(image), 64).astype(int) - by_pillow(image, 64))
    assert levels.max() <= 2
    assert (levels > 1).mean() < 0.001


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 700), st.integers(32, 700))
def test_fast_pictures_look_the_same(width: int, height: int) -> None:
    """Up to a shift by one pixel, since the centre is cut out before the picture is made smaller."""
    body = image_bytes(noise(width, height), "JPEG", quality=90)
    exact, fast = decode.picture(body, 32), decode.picture(body, 32, "fast")
    assert fast.shape == exact.shape
    inner = exact[:, 1:31, 1:31].astype(float)
    shifts = [(down, right) for down in (0, 1, 2) for right in (0, 1, 2)]
    assert min(np.abs(fast[:, down : down + 30, right : right + 30] - inner).mean() for down, right in shifts) < 12


def test_fast_decoding_reads_a_large_jpeg_at_a_reduced_scale() -> None:
    body = image_bytes(noise(800, 640), "JPEG")
    assert decode.whole(body).shape == (640, 800, 3)
    assert decode.whole(body, 100, "fast").shape == (160, 200, 3)


def frames(kind: str) -> bytes:
    first, *others = (noise(20, 20, seed) for seed in range(3))
    return image_bytes(first, kind, save_all=True, append_images=others)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "undecodable_image"),
        (b"<html>404</html>", "undecodable_image"),
        (image_bytes(Image.effect_noise((64, 64), 50), "JPEG")[:600], "undecodable_image"),
        (image_bytes(Image.new("1", (9000, 9000))), "huge_image"),
        (image_bytes(Image.new("L", (9000, 9000)), "JPEG"), "huge_image"),
        (image_bytes(Image.new("RGB", (8, 8)), "GIF"), "undecodable_image"),
        (image_bytes(Image.new("I;16", (8, 8))), "sixteen_bit_image"),
        (frames("PNG"), "animated_image"),
        (frames("WEBP"), "animated_image"),
    ],
)
def test_bad_pictures_are_named(body: bytes, cause: str) -> None:
    for way in ("exact", "fast"):
        with pytest.raises(DecodeError, match=cause):
            decode.picture(body, 16, way)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "empty_caption"),
        (b" \n", "empty_caption"),
        (b"123 !", "letterless_caption"),
        (b"\xff\xfe", "caption_not_utf8"),
        (b"a" * 70000, "long_caption"),
    ],
)
def test_bad_captions_are_named(body: bytes, cause: str) -> None:
    with pytest.raises(DecodeError, match=cause):
        decode.caption(body)
    assert decode.caption(" schöner Tag\n".encode()) == "schöner Tag"


def test_captions_from_json() -> None:
    body = json.dumps({"caption": " a cat ", "width": 5}).encode()
    assert decode.caption(body, "json.caption") == "a cat"
    for wrong, cause in ((b"{", "caption_not_json"), (b"[" * 9000, "caption_not_json"), (b"[1]", "no_caption")):
        with pytest.raises(DecodeError, match=cause):
            decode.caption(wrong, "json.caption")
    with pytest.raises(DecodeError, match="no_caption"):
        decode.caption(body, "json.width")
