"""A drawing as a picture: what is refused before resvg sees it, what is drawn, and what is lost with a process."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.icons.render
from data.icons.crew import pictures
from data.icons.names import STARTS, TEMPLATES, Name
from data.icons.render import BadIcon, checked, picture
from data.icons.sets import Drawing
from data.icons.world import caption

RESVG = pytest.mark.skipif(find_spec("resvg_py") is None, reason="needs resvg-py: pip install -e '.[icons]'")
# the first is in 9 of the second, which is in 9 of the third, ...: resvg refuses so many
MANY = "".join(f'<g id="a{i}">' + f"<use href='#a{i - 1}'/>" * 9 + "</g>" for i in range(9))
SQUARE = '<path d="M2 2h20v20H2z"/>'


def drawing(body: str, name: str = "a", turns: int = 0, flips: tuple[bool, bool] = (False, False)) -> Drawing:
    return Drawing("s", name, Name(name, "", "", "", 0), body, (0, 0, 24, 24), turns, flips)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ('<image href="{file}"/>', "foreign_element"),
        ('<image xlink:href="data:image/png;base64,AAAA"/>', "foreign_element"),
        ('<x:image xmlns:x="http://www.w3.org/2000/svg" href="{file}"/>', "foreign_element"),
        ('<filter id="a"><feImage href="{file}"/></filter>', "foreign_element"),
        ('<filter id="a"><feTurbulence numOctaves="999999999"/></filter>', "foreign_element"),
        ("<style>@import url({file})</style>", "foreign_element"),
        ("<script>1</script>", "foreign_element"),
        ("<foreignObject/>", "foreign_element"),
        ("<text>a</text>", "foreign_element"),
        ('<b xmlns="http://www.w3.org/1999/xhtml"/>', "foreign_element"),
        ('<use href="{file}#a"/>', "outside_reference"),
        ('<use xlink:href="http://127.0.0.1/a.svg#a"/>', "outside_reference"),
        ('<use href=" #a"/>', "outside_reference"),
        ('<path fill="url({file}#a)"/>', "outside_reference"),
        ("<path style=\"fill:URL( 'http://127.0.0.1/a' )\"/>", "outside_reference"),
        ('<path style="fill:u\\72l(x)"/>', "outside_reference"),
        ("<path", "no_svg"),
        ("<g>", "no_svg"),
        ("</svg><svg>", "no_svg"),
        ("</svg>", "no_svg"),
        ("&outside;", "no_svg"),
        ("\x00", "no_svg"),
        ('<!DOCTYPE svg [<!ENTITY e SYSTEM "{file}">]><g>&e;</g>', "no_svg"),
        ("<g>" * 500 + "</g>" * 500, "too_many_elements"),
        ("<g/>" * 30_000, "too_many_elements"),
    ],
)
def test_a_drawing_with_anything_from_outside_is_refused(tmp_path: Path, body: str, cause: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    with pytest.raises(BadIcon, match=f"^{cause}$"):
        checked(body.replace("{file}", str(tmp_path / "red.png")))


def test_what_is_drawn_is_what_was_checked() -> None:
    paths = """<path fill="url(#g)" style="stroke: url( '#g' )" d="M0 0"/>"""
    body = f'<!-- a --><?b c?><linearGradient id="g"/>{paths}<use xlink:href="#p"/>'
    anew = checked(body)
    assert "a -->" not in anew
    assert "?" not in anew
    assert anew.count("#g") == 2
    assert checked(anew) == anew


@RESVG
def test_turns_and_flips_show() -> None:
    arrow = '<path d="M2 10H14V4L22 12L14 20V14H2Z" fill="#000"/><path d="M2 2H6V6H2Z" fill="#00f"/>'

    def seen(turns: int, flips: tuple[bool, bool]) -> np.ndarray:
        found = drawing(arrow, turns=turns, flips=flips)
        draw = np.random.Generator(np.random.PCG64(4))
        png = data.icons.render._drawn(found, 64, np.zeros(3), draw)
        return np.asarray(Image.open(io.BytesIO(png)).getchannel("A"), np.float32)

    plain = seen(0, (False, False))
    # at the middle, without a tilt, a turned picture is the picture turned
    box = np.argwhere(plain > 128)
    square = plain[box[:, 0].min() : box[:, 0].max() + 1, box[:, 1].min() : box[:, 1].max() + 1]
    for turns, flips, expected in (
        (1, (False, False), np.rot90(square, -1)),
        (2, (False, False), np.rot90(square, 2)),
        (0, (True, False), square[:, ::-1]),
        (0, (False, True), square[::-1]),
        (1, (True, False), np.rot90(square[:, ::-1], -1)),
    ):
        found = seen(turns, flips)
        box = np.argwhere(found > 128)
        part = found[box[:, 0].min() : box[:, 0].max() + 1, box[:, 1].min() : box[:, 1].max() + 1]
        shape = np.minimum(part.shape, expected.shape)
        near = np.abs(part[: shape[0], : shape[1]] - expected[: shape[0], : shape[1]])
        assert near.mean() < 25, (turns, flips)


@RESVG
@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("", "empty_picture"),
        ("<g/>", "empty_picture"),
        ('<path d="M0 0h1v1z"/>', "empty_picture"),
        ('<path d="M90 90h9v9z"/>', "empty_picture"),
        ('<path opacity="0" d="M0 0h24v24H0z"/>', "empty_picture"),
        ('<path d="M0 0h24v24H0z" opacity=".05"/>', "uniform_picture"),
        (MANY, "not_drawn"),
    ],
)  # fmt: skip
def test_a_drawing_of_nothing_gives_no_picture(body: str, cause: str) -> None:
    with pytest.raises(BadIcon, match=f"^{cause}$"):
        picture(drawing(body), 32, 0)


@RESVG
@pytest.mark.parametrize("pixels", [32, 64])
def test_ink_and_ground_are_apart_whatever_is_drawn(pixels: int) -> None:
    apart = []
    for number in range(120):
        fill = ("", 'fill="currentColor" ', 'fill="#fff" ')[number % 3]
        jpeg = picture(drawing(SQUARE.replace("d=", f"{fill}d="), f"n{number}"), pixels, 0)
        rgb = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float32)
        assert rgb.shape == (pixels, pixels, 3)
        corners = np.stack([rgb[0, 0], rgb[0, -1], rgb[-1, 0], rgb[-1, -1]])
        apart.append(np.abs(rgb[pixels // 2, pixels // 2] - corners).max(-1).mean())
    assert min(apart) > 60


@RESVG
def test_a_drawing_that_takes_too_long_costs_itself_alone() -> None:
    blurs = '<filter id="a">' + '<feGaussianBlur stdDeviation="3"/>' * 50 + "</filter>"
    slow = drawing(blurs + '<g filter="url(#a)"><path d="M4 4h16v16H4z"/></g>' * 300, "slow")
    bad = drawing("<path", "bad")
    lists = [[drawing(SQUARE, f"{n}") for n in range(3)], [drawing(SQUARE, "x"), slow, bad, drawing(SQUARE, "y")]]
    found = list(pictures(lists, 32, 0, 2, seconds=0.25))
    assert [[one if isinstance(one, str) else "" for one in some] for some in found] == [
        ["", "", ""],
        ["", "too_slow", "no_svg", ""],
    ]
    assert found[0] == [picture(one, 32, 0) for one in lists[0]]


def test_captions_are_names_in_sentences() -> None:
    says = Name("waving hand", "outline", "dark", "", 0)
    one = Drawing("s", "wave", says, "", (0, 0, 1, 1), also=("hello",))
    texts = [caption(one, 0, which) for which in range(300)]
    assert texts == [caption(one, 0, which) for which in range(300)]
    assert len(set(texts)) > 20
    assert all("waving hand" in text or "hello" in text for text in texts)
    assert any("with dark skin tone" in text for text in texts)
    assert any("outline waving hand" in text for text in texts)
    assert {text.format(c="") for text in TEMPLATES} <= {text.format(c="") for text in STARTS}
