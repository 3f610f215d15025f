"""Icon sets: their names as words, their packages read within bounds, and what trains and what evaluates kept apart."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from icon_packages import SHAPES, STYLES, icons, package

import data.icons.sets
from data.icons.fetch import PINS, pins, verify
from data.icons.names import read_name
from data.icons.plan import EVALUATION, STANDING, VARIANTS, IconWorld, Plan, make_plan
from data.icons.sets import IconSet, read_set
from data.refusal import UserError


@pytest.mark.parametrize(
    ("name", "of", "suffixes", "among", "says"),
    [
        ("banana", "noto", (), (), ("banana", "", "", "")),
        ("red_apple", "noto", (), (), ("red apple", "", "", "")),
        ("access-time-24-filled", "fluent", ("24-filled", "20-filled"), (), ("access time", "filled", "", "")),
        ("pentagon-thin", "ph", ("thin", "bold", ""), ("pentagon", "pentagon-thin"), ("pentagon", "thin", "", "")),
        ("traffic-light", "ph", ("thin", "light", ""), ("traffic-light",), ("traffic light", "", "", "")),
        ("twotone-house", "ic", (), (), ("house", "twotone", "", "")),
        ("round-pushpin", "noto", (), (), ("round pushpin", "", "", "")),
        ("home-2", "ri", (), (), ("home", "", "", "2")),
        ("home-outline", "mdi", (), (), ("home", "outline", "", "")),
        ("outline", "mdi", (), (), ("outline", "", "", "")),
        ("waving-hand-medium-dark-skin-tone", "noto", (), (), ("waving hand", "", "medium dark", "")),
        ("ear-light", "fluent-emoji", (), (), ("ear", "", "light", "")),
        ("ear-light", "noto", (), (), ("ear light", "", "", "")),
        ("medium-skin-tone", "noto", (), (), ("medium skin tone", "", "", "")),
    ],
)
def test_a_name_says_what_is_drawn_apart_from_its_style(
    name: str, of: str, suffixes: tuple[str, ...], among: tuple[str, ...], says: tuple[str, ...]
) -> None:
    found = read_name(name, of, suffixes, among)
    assert found is not None
    assert found[:4] == says


@pytest.mark.parametrize(
    "name", ["1", "7k", "x", "-", "", "café", "a-" * 40, "focus-frame-photos-photo-camera-picture-of-a-dog-x"]
)
def test_what_is_no_words_is_no_name(name: str) -> None:
    assert read_name(name, "noto") is None


def test_a_set_is_read_with_its_aliases_turns_and_flips(tmp_path: Path) -> None:
    content = icons("one", aliases={
        "plantain": {"parent": "banana"}, "banana-left": {"parent": "banana", "hFlip": True},
        "banana-back": {"parent": "banana-left", "hFlip": True, "rotate": 3},
        "banana-down": {"parent": "banana-back", "rotate": 3},
        "old": {"parent": "banana", "hidden": True},
    })  # fmt: skip
    content["icons"]["key"] |= {"width": 12, "left": 3}
    pin = package(tmp_path, "one", content)
    found = read_set(tmp_path / pin.file, "one")
    assert (found.title, found.author, found.licence) == ("One", "one's author", "CC-BY-4.0")
    drawn = {drawing.name: drawing for drawing in found.drawings}
    assert list(drawn) == [*SHAPES, "banana-left", "banana-back", "banana-down"]
    assert drawn["banana"].also == ("plantain",)
    assert [(drawn[name].turns, drawn[name].flips) for name in ("banana", "banana-left", "banana-back", "banana-down")] == [
        (0, (False, False)), (0, (True, False)), (3, (False, False)), (2, (False, False)),
    ]  # fmt: skip
    assert drawn["key"].box == (3, 0, 12, 24)
    assert [(one.name, one.cause) for one in found.left_out] == [("old", "withdrawn")]


@pytest.mark.parametrize(
    ("icon", "cause"),
    [
        ("no object", "no_body"), ({}, "no_body"), ({"body": 3}, "no_body"), ({"body": "x" * 2_000_000}, "huge_body"),
        ({"body": "<g/>", "width": 0}, "bad_size"), ({"body": "<g/>", "width": -1}, "bad_size"),
        ({"body": "<g/>", "height": "24"}, "bad_size"), ({"body": "<g/>", "width": True}, "bad_size"),
        ({"body": "<g/>", "left": float("nan")}, "bad_size"), ({"body": "<g/>", "width": float("inf")}, "bad_size"),
        ({"body": "<g/>", "width": 10**400}, "bad_size"), ({"body": "<g/>", "width": 1e9, "height": 1e9}, "bad_size"),
        ({"body": "<g/>", "width": 240}, "bad_size"), ({"body": "<g/>", "rotate": "1"}, "bad_size"),
    ],
)  # fmt: skip
def test_a_bad_icon_is_left_out_by_name_and_the_rest_is_read(tmp_path: Path, icon: Any, cause: str) -> None:
    content = icons("one")
    content["icons"]["bad-one"] = icon
    pin = package(tmp_path, "one", content)
    found = read_set(tmp_path / pin.file, "one")
    assert [one for one in found.left_out] == [("one", "bad-one", cause)]
    assert len(found.drawings) == len(SHAPES)


@pytest.mark.parametrize("parent", [None, 3, "nothing", "self", "loop"])
def test_an_alias_of_nothing_is_left_out(tmp_path: Path, parent: Any) -> None:
    aliases = {"self": {"parent": parent}, "loop": {"parent": "self"}}
    pin = package(tmp_path, "one", icons("one", aliases=aliases))
    found = read_set(tmp_path / pin.file, "one")
    assert {one.cause for one in found.left_out} == {"alias_of_nothing"}
    assert len(found.drawings) == len(SHAPES)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"icons.json": b"{"}, "Expecting"), ({"icons.json": b"[" * 100_000}, "recursion"),
        ({"icons.json": b"\xff"}, "utf-8"),
        ({"icons.json": b"[]"}, "it has no icons.json"), ({"icons.json": b'{"icons": []}'}, "it has no icons.json"),
        ({"info.json": b"3"}, "it has no icons.json and info.json with icons, a licence and an author"),
        ({"icons.json": b" " * (2 << 20)}, "its package/icons.json is too large"),
        ({"pad": bytes(2 << 20)}, "it unpacks to more"),
    ],
)  # fmt: skip
def test_a_package_that_is_no_set_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], why: str
) -> None:
    monkeypatch.setattr(data.icons.sets, "UNPACKED", 1 << 20)
    pin = package(tmp_path, "one", icons("one"), members)
    with pytest.raises(UserError, match=rf"{pin.file} is no icon set \(.*{why}.*; delete it"):
        read_set(tmp_path / pin.file, "one")


def test_names_and_authors_of_any_letters_can_be_written(tmp_path: Path) -> None:
    content = icons("one")
    content["icons"] |= {"\ud800": {"body": "<g/>"}, "a\nb": {"body": "\ud800"}}
    info = json.dumps({"name": "\ud800", "author": {"name": " Paweł\nKuna "}, "license": {"title": "x" * 999}}).encode()
    found = read_set(tmp_path / package(tmp_path, "one", content, {"info.json": info}).file, "one")
    assert (found.title, found.author, len(found.licence)) == ("?", "Paweł Kuna", 200)
    assert [(one.name, one.cause) for one in found.left_out] == [(n, "unreadable_name") for n in ("\ud800", "a\nb")]


@pytest.mark.parametrize("how", ["cut", "no gzip", "empty", "no tar", "gone"])
def test_a_file_that_is_no_package_ends_in_a_sentence(tmp_path: Path, how: str) -> None:
    pin = package(tmp_path, "one", icons("one"))
    path = tmp_path / pin.file
    whole = path.read_bytes()
    with pytest.raises(UserError, match=r"its digest is sha512-.*, expected sha512-.*; delete it"):
        path.write_bytes(whole[:-9])
        verify(path, pin)
    path.write_bytes(
        {"cut": whole[:200], "no gzip": b"x" * 999, "empty": b"", "no tar": gzip.compress(b"x" * 999), "gone": b""}[how]
    )
    if how == "gone":
        path.unlink()
        with pytest.raises(UserError, match="can't be read"):
            verify(path, pin)
    with pytest.raises(UserError, match="is no icon set"):
        read_set(path, "one")


def the_sets(folder: Path, changed: dict[str, dict[str, Any]] | None = None) -> list[IconSet]:
    """The five sets to train on and the one to evaluate on, some with further icons."""
    found = []
    for name in STYLES:
        content = icons(name)
        content["icons"] |= (changed or {}).get(name, {})
        found.append(read_set(folder / package(folder, name, content).file, name))
    return found


SMALL = IconWorld(captioned=2, evaluation=("test",))


def named(plan: Plan) -> list[list[tuple[str, str]]]:
    return [[(one.set, one.name) for one in part] for part in (plan.train, plan.held, plan.tests)]


def test_classes_stand_in_five_training_sets_and_styles_are_kept_apart(tmp_path: Path) -> None:
    path = '<path d="M0 0H{}V9Z"/>'
    further: dict[str, dict[str, Any]] = {
        name: {"cup": {"body": path.format(i)}} for i, name in enumerate(STYLES) if name != "one"
    }
    further["one"] = {
        "stolen": {"body": f" {STYLES['test'].format(d=SHAPES['banana'])}\n"},
        "again": {"body": path.format(1)},
    }
    sets = the_sets(tmp_path, further)
    plan = make_plan(sets, SMALL)
    assert sorted(one.name for one in plan.tests) == sorted(SHAPES)  # cup stands in four sets alone
    assert {one.set for one in plan.tests} == {"test"}
    assert {one.set for one in (*plan.train, *plan.held)} == set(STYLES) - {"test"}
    assert {(one.name, one.cause) for one in plan.left_out} == {
        ("stolen", "drawn_in_evaluation"), ("cup", "no_class"), ("cup", "drawn_twice"),
    }  # fmt: skip
    (again,) = (one for one in (*plan.train, *plan.held) if one.name == "again")
    assert again.also == ("cup",)  # and so cup stands in "one" under the name of a drawing of "two"
    assert len(plan.held) == len({one.says.concept for one in plan.held}) == SMALL.captioned
    assert len(plan.train) + len(plan.held) == 4 * 5 + 4
    assert named(make_plan(sets[::-1], SMALL)) == named(plan)
    assert named(make_plan(sets, replace(SMALL, seed=1))) != named(plan)
    assert named(make_plan(sets, replace(SMALL, pairs=7)))[0] == named(plan)[0][:7]


def test_sizes_are_one_drawing_and_variants_are_few(tmp_path: Path) -> None:
    body = '<path d="M0 0H{}V9Z"/>'
    sizes = {f"cup-{size}": {"body": body.format(size)} for size in (16, 48, 20)}
    styles = {f"pan-{number}": {"body": body.format(100 + number)} for number in range(1, 8)} | {
        "pan": {"body": body.format(99)}
    }
    plan = make_plan(the_sets(tmp_path, {"one": sizes | styles}), replace(SMALL, captioned=0))
    names = [one.name for one in plan.train if one.set == "one"]
    assert [name for name in names if name.startswith("cup")] == ["cup-48"]
    assert len([name for name in names if name.startswith("pan")]) == VARIANTS
    assert "pan" in names  # the plain one
    causes = [one.cause for one in plan.left_out]
    assert (causes.count("smaller_size"), causes.count("further_variant")) == (2, 8 - VARIANTS)


def test_a_test_picture_means_one_class_and_too_few_classes_are_refused(tmp_path: Path) -> None:
    sets = the_sets(tmp_path)
    aliased = [replace(one, also=("star",)) if one.name == "banana" else one for one in sets[-1].drawings]
    plan = make_plan([*sets[:-1], sets[-1]._replace(drawings=aliased)], SMALL)
    assert sorted(one.name for one in plan.tests) == ["house", "key", "star"]
    assert ("test", "banana", "two_classes") in plan.left_out
    with pytest.raises(
        UserError, match=f"at least {STANDING} of the 5 sets taken, and a world needs at least 2 such classes"
    ):
        make_plan(sets[1:], SMALL)


def test_the_pinned_sets_are_whole_and_the_docs_name_their_authors_and_licences() -> None:
    found = pins()
    rows = json.loads(PINS.read_text())
    assert [row["name"] for row in rows] == sorted({row["name"] for row in rows})
    assert set(EVALUATION) < {pin.name for pin in found}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", pin.version) for pin in found)
    assert all(re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", pin.integrity) for pin in found)
    table = (ROOT / "docs/icons.md").read_text()
    missing = [
        pin.name
        for pin in found
        if f"| {pin.name} | {pin.version} | {pin.title} | {pin.author} | {pin.licence} |" not in table
    ]
    assert not missing
    assert table.count("\n| ") == len(found) + 1
    hosts = {
        host for path in PINS.parent.iterdir() if path.is_file() for host in re.findall(r"://([\w.]+)", path.read_text())
    }
    assert hosts == {"www.w3.org"}  # of the namespace; npm knows its registry
    with pytest.raises(UserError, match="'notto' is none of the .* icon sets; .*nearest: noto"):
        pins(["notto"])
