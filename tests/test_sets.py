"""Evaluation sets and the lists that users write: read right, or refused by file and line; nothing is lost in silence."""

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import write_tar

from configs.spec import load
from data.annotations import read_flags, read_labels
from data.archive import Keys
from data.captioned import read_captioned
from data.captions import read_templates
from data.decode import DecodeError, caption
from data.labelled import Labelled, read_labelled
from data.refusal import UserError
from data.seeding import number_of
from data.shards import Index
from engine.models.clip import imagenet
from report.published import read_published

FILE = io.BytesIO()
Image.new("RGB", (2, 2)).save(FILE, "PNG")
PNG = FILE.getvalue()
BOM = "\ufeff"
KEYS = ["a", "b", "c"]
INDEX = Index(("x",), np.array([3]), Keys.of(KEYS), number_of(KEYS), np.zeros((3, 4), np.int64), (), (), "", (0,))


def read(folder: Path) -> Labelled:
    return read_labelled(str(folder), imagenet())


def folders(root: Path, *names: str) -> Path:
    """A picture in a folder for each class."""
    for name in names:
        (root / name).mkdir()
        (root / name / "x.png").write_bytes(PNG)
    return root


def tar(root: Path, members: list[tuple[str, bytes]], names: str = "ant\nbee\ncat\n", shards: bytes = b"1") -> Path:
    """A set of one tar."""
    (root / "test").mkdir()
    (root / "classnames.txt").write_text(names)
    (root / "test/nshards.txt").write_bytes(shards)
    write_tar(root / "test/0.tar", members)
    return root


def refused(words: str, act: Callable[..., object], *given: object) -> None:
    """One sentence with these words: what was wrong and what to do."""
    with pytest.raises(UserError) as caught:
        act(*given)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize("after", ["", "\n", " \t\n\n"])
def test_lists_are_read_the_same_however_they_are_ended_and_marked(tmp_path: Path, end: str, mark: str, after: str) -> None:
    root = folders(tmp_path, "a", "b", "c")
    for name, lines in (
        ("classnames.txt", ["ant ", " bee", "cät\u00a0"]),
        ("zeroshot_classification_templates.txt", ["a {c}", "{c}!"]),
    ):
        (root / name).write_bytes((mark + end.join(lines) + after.replace("\n", end)).encode())
    labelled = read(root)
    assert labelled.classes == ["ant", "bee", "cät"]
    assert labelled.templates == ["a {c}", "{c}!"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"ant\n\ncat\n", r"classnames.txt:2 is blank"),
        (b"\nant\nbee\n", r"classnames.txt:1 is blank"),
        (b"ant\n \t \ncat\n", r"classnames.txt:2 is blank"),
        ("ant\nb\u00e4r\ncat\n".encode("latin-1"), r"classnames.txt:2 is not UTF-8 \(byte 0xe4\)"),
        ("ant\nbee\ncat\n".encode("utf-16"), r"classnames.txt is UTF-16"),
        ("ant\nbee\ncat\n".encode("utf-16-be"), r"classnames.txt holds zero bytes, as UTF-16 does"),
        ("ant\nbee\ncat\n".encode("utf-32"), r"classnames.txt is UTF-32"),
        ("ant\nbe\u2028e\ncat\n".encode(), r"classnames.txt:2 holds line separator \(U\+2028\)"),
        ("ant\nbee\x85\x85ape\ncat\n".encode(), r"classnames.txt:2 holds a control character \(U\+0085\)"),
        (b"ant\nbee\x0cape\ncat\n", r"classnames.txt:2 holds a control character"),
        (b"n01\tant\nn02\tbee\nn03\tcat\n", r"classnames.txt:1 holds a tab"),
        ("ant\n\ufeffbee\ncat\n".encode(), r"classnames.txt:2 holds zero width no-break space"),
        ("ant\n\u200b\ncat\n".encode(), r"classnames.txt:2 holds zero width space"),
        (b"", r"classnames.txt: the file is empty"),
        (b"\n\n", r"classnames.txt: the file is empty"),
        (b"ant\nbee\nant \n", r"names the class 'ant' twice"),
        (b"ant\nbee\nAnt\n", r"names the class 'ant' twice \(and 'Ant'\)"),
        (b"black  ant\nbee\nblack ant\n", r"names the class 'black  ant' twice"),
        ("\u00e4\nbee\na\u0308\n".encode(), r"twice"),
        (b"a & b\nbee\na &amp; b\n", r"twice"),
        (b"ant\nbee\n", r"has 3 folders of pictures and 2 class names"),
    ],
)  # fmt: skip
def test_a_list_of_classes_that_would_be_misread_is_refused_by_file_and_line(
    tmp_path: Path, body: bytes, words: str
) -> None:
    (folders(tmp_path, "a", "b", "c") / "classnames.txt").write_bytes(body)
    refused(words, read, tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"a {c}\nno class\n", r"t.txt:2: the line 'no class' lacks \{c\}"),
        (b"a {c}\n\na {c\n", r"t.txt:3: the line 'a \{c' lacks"),
        (b"a {c} {", r"t.txt:1: the line 'a \{c\} \{' has a brace beside"),
        (b"a {} {c}", r"has a brace beside"),
        ("a {c}\nein B\u00e4r {c}".encode("latin-1"), r"t.txt:2 is not UTF-8"),
        ("a {c}".encode("utf-16"), r"is UTF-16"),
        (b"\n \n", r"the file is empty"),
    ],
)  # fmt: skip
def test_templates_that_would_be_misread_are_refused_by_file_and_line(tmp_path: Path, body: bytes, words: str) -> None:
    (tmp_path / "t.txt").write_bytes(body)
    refused(words, read_templates, tmp_path / "t.txt")


def test_a_template_may_name_its_class_twice_and_blank_lines_between_templates_count_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a {c}, a kind of {c}\n\nthe {c}\n")
    assert read_templates(tmp_path / "t.txt") == ["a {c}, a kind of {c}", "the {c}"]


@settings(max_examples=25)
@given(st.sets(st.integers(0, 1200), min_size=2, max_size=30), st.sampled_from(["{}", "{:04d}", "{:02d}"]))
def test_folders_called_by_numbers_stand_in_the_order_of_the_numbers(numbers: set[int], form: str) -> None:
    with TemporaryDirectory() as made:
        root = folders(Path(made), *(form.format(n) for n in numbers))
        refused("calls its classes by numbers", read, root)
        unnamed = read_labelled(str(root), imagenet(), named=False)  # to learn from, no name is needed
        assert unnamed.classes == [form.format(n) for n in sorted(numbers)]
        (root / "classnames.txt").write_text("\n".join(f"the {n}" for n in sorted(numbers)))
        labelled = read(root)
        for (_, key, _, _), label in zip(labelled.where, labelled.labels, strict=True):
            assert labelled.classes[label] == f"the {int(key.split('/')[0])}"


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["1", "01"], "has the folders 01 and 1 for one class"),
        (["2", "10", "other"], "folder 10 stands before 2"),
        (["class_2", "class_10", "class_1"], "folder class_10 stands before class_2"),
        (["class_10", "class_02", "class_01"], [2, 1, 0]),
        (["02", "10", "other"], [0, 1, 2]),
        (["DC-3", "DC-10", "A318"], [2, 1, 0]),  # names, in the order of names
        (["b", "a", "B"], [2, 1, 0]),
    ],
)
def test_other_names_stand_in_their_order_or_are_refused(tmp_path: Path, names: list[str], order: list[int] | str) -> None:
    root = folders(tmp_path, *names)
    (root / "classnames.txt").write_text("x\ny\nz\n"[: 2 * len(names)])
    if isinstance(order, str):
        refused(order, read, root)
    else:
        seen = [key.split("/")[0] for _, key, _, _ in read(root).where]
        assert seen == [names[i] for i in order]


def test_folders_called_as_imagenet_calls_its_classes_get_its_names(tmp_path: Path) -> None:
    some = [134, 517, 744, 1, 999]
    root = folders(tmp_path, *(imagenet().wnids[i] for i in some))
    assert read(root).classes == [imagenet().named(False)[i] for i in sorted(some)]
    assert read_labelled(str(root), imagenet(), published=True).classes == read(root).classes
    folders(root, "n00000001")
    assert read_labelled(str(root), imagenet(), named=False).classes[0] == "n00000001"
    refused("1 folders that are none of ImageNet's 1,000 classes, such as n00000001; write classnames.txt", read, root)
    (root / "classnames.txt").write_text("a\nb\nc\nd\ne\nf")
    assert read(root).classes == list("abcdef")


HARMS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda r: (r / "a/y.png").symlink_to("nowhere"), r"a/y.png is a link to nowhere, which is not there"),
    (lambda r: (r / "d").symlink_to("nowhere"), r"d is a link to nowhere"),
    (lambda r: (r / "classnames.txt").symlink_to("nowhere"), r"classnames.txt is a link to nowhere"),
    (lambda r: (r / "classnames.txt").mkdir(), r"classnames.txt: is no file"),
    (lambda r: (r / "zeroshot_classification_templates.txt").symlink_to("x"), r"templates.txt.*(No such file|is a link)"),
    (lambda r: (r / "a/deep").mkdir(), r"a/deep is a folder inside a class's folder"),
    (lambda r: (r / "a/z.bmp").write_bytes(b"BM"), r"a/z.bmp is a picture of a kind that is not read"),
    (lambda r: (r / "y.png").write_bytes(PNG), r"holds y.png beside its folders"),
    (lambda r: folders(r, "A"), r"names the class 'A' twice \(and 'a'\)"),
    (lambda r: folders(r, "a_a", "a a"), r"names the class 'a a' twice"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "words"), HARMS, ids=[words for _, words in HARMS])
def test_what_lies_in_folders_and_has_no_place_there_is_refused(
    tmp_path: Path, harm: Callable[[Path], Any], words: str
) -> None:
    harm(folders(tmp_path, "a", "b"))
    refused(words, read, tmp_path)


def test_other_files_hidden_ones_and_folders_without_pictures_move_no_label(tmp_path: Path) -> None:
    root = folders(tmp_path, "a", "b", "c")
    (root / "b/x.png").unlink()
    for name in ("a/readme.md", "a/.DS_Store", "a/._x.png", ".hidden.png", "notes.txt"):
        (root / name).write_bytes(b"no picture")
    labelled = read(root)
    assert labelled.classes == ["a", "b", "c"]
    assert list(zip([key for _, key, _, _ in labelled.where], labelled.labels, strict=True)) == [("a/x", 0), ("c/x", 2)]


def member(number: int, label: bytes = b"0") -> list[tuple[str, bytes]]:
    return [(f"{number}.png", PNG), (f"{number}.cls", label)]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*member(0), ("v0.0.png", PNG), ("v0.0.cls", b"1")], r"v0.0.png in .*0.tar has a dot in its name"),
        ([("a/v0.0.cls", b"1"), *member(0)], r"a/v0.0.cls in .*0.tar has a dot"),
        ([*member(0), *member(1), *member(0)], r"0.tar holds 0.png and 0.png under one key"),
        ([*member(0), ("0.jpg", b"x")], r"holds 0.png and 0.jpg under one key"),
        ([("0.png", PNG), ("0.cls", b"0"), ("0.CLS", b"1")], r"holds 0.cls and 0.CLS under one key"),
        ([*member(0), ("1.cls", b"1")], r"sample 1 in .*0.tar has a picture or a label but not both"),
        (member(0, b"3"), r"label b'3' of 0 in .*0.tar is no class from 0 to 2"),
        (member(0, b"-1"), r"no class from 0 to 2"),
        (member(0, b"1.0"), r"no class from 0 to 2"),
        (member(0, b""), r"no class from 0 to 2"),
        (member(0, b"1 2"), r"no class from 0 to 2"),
        (member(0, "\u0661".encode()), r"no class from 0 to 2"),
        (member(0, b"0" + b" " * 60 + b"1 2"), r"no class|more than 64"),
        (member(0, b" " * 100), r"0.cls in .*0.tar has 100 bytes, more than 64"),
    ],
)  # fmt: skip
def test_a_tar_of_which_something_would_be_lost_is_refused_by_name(tmp_path: Path, members: Any, words: str) -> None:
    refused(words, read, tar(tmp_path, members))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "a/b", "c"]), st.sampled_from(["", ".0", ".x"]), st.integers(0, 2)), max_size=6
    ),
    st.sampled_from([("", b""), ("._", b"mac")]),
)
def test_a_tar_is_read_whole_or_refused(rows: list[tuple[str, str, int]], more: tuple[str, bytes]) -> None:
    """Whatever its names: as many pictures as it holds, each with its own label."""
    members = [part for key, dot, label in rows for part in ((f"{key}{dot}.png", PNG), (f"{key}{dot}.cls", b"%d" % label))]
    members += [(f"{more[0]}z.png", more[1])] if more[0] else []
    with TemporaryDirectory() as made:
        try:
            labelled = read(tar(Path(made), members))
        except UserError:
            keys = [key for key, _, _ in rows]
            assert not rows or len(set(keys)) < len(keys) or any(dot for _, dot, _ in rows)
            return
        seen = [(key, int(label)) for (_, key, _, _), label in zip(labelled.where, labelled.labels, strict=True)]
        assert seen == [(key, label) for key, _, label in rows]


@pytest.mark.parametrize("said", [b"", b"one", b"-1", b"1.0", b"1 2", b"\xff\xfe1\x00", b"9" * 40])
def test_a_number_of_shards_that_is_none_is_refused(tmp_path: Path, said: bytes) -> None:
    root = tar(tmp_path, member(0), shards=said)
    for act in (read, partial(read_captioned, templates=["{c}"])):
        refused(r"nshards.txt.*; (give the number|save it as)", act, root)


def test_shards_that_are_not_counted_are_refused_and_marks_of_order_read_over(tmp_path: Path) -> None:
    root = tar(tmp_path, member(0, b"\xef\xbb\xbf2\r\n"), shards=b"\xef\xbb\xbf1\r\n")
    assert read(root).labels.tolist() == [2]
    write_tar(root / "test/1.tar", member(1))
    refused(r"holds test/1.tar, one more than test/nshards.txt says", read, root)


@pytest.mark.parametrize(
    ("body", "captions"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\n\n", ["one", "two"]),
        ("one\u2028still one\n".encode(), ["one\u2028still one"]),
        ("ein B\u00e4r".encode("latin-1"), "0.txt in .*0.tar:1 is not UTF-8"),
        ("one".encode("utf-16"), "is UTF-16"),
        (b" \n", "0 in .*0.tar has a picture or captions but not both"),
        (b"x" * (1 << 20) + b"y", "has 1,048,577 bytes, more than 1,048,576"),
    ],
)  # fmt: skip
def test_captions_of_a_set_are_its_lines_or_refused(tmp_path: Path, body: bytes, captions: list[str] | str) -> None:
    root = tar(tmp_path, [("0.png", PNG), ("0.txt", body)])
    if isinstance(captions, str):
        refused(captions, read_captioned, str(root), ["{c}"])
    else:
        assert read_captioned(str(root), ["{c}"]).captions == captions


def test_a_tar_of_captions_of_which_something_would_be_lost_is_refused(tmp_path: Path) -> None:
    root = tar(tmp_path, [])
    doubled = [("0.png", PNG), ("0.txt", b"one"), ("v.0.png", PNG), ("v.0.txt", b"two")]
    write_tar(root / "test/0.tar", doubled)
    refused("v.0.png in .* has a dot", read_captioned, str(root), ["{c}"])


def test_a_target_that_names_two_classes_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path, *imagenet().wnids)
    labelled = read_labelled(str(root), imagenet(), published=True)
    refused("attack.target is 'missile', which is the name of classes 657 and 744", labelled.target, "missile")
    assert labelled.target("banana") == imagenet().classes.index("banana")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (BOM + '{"key": "a", "label": 1}\r\n\r\n{"key": "c", "label": 0, "why": "x\u2028y"}\r\n', [1, -1, 0]),
        ('{"key": "b", "label": 2}', [-1, 2, -1]),
        ('{"plan": {}, "entries": [\n{"key": "b", "label": 2}\n]}\n', [-1, 2, -1]),
        ('{"key": "a", "label": 1}\n{"key": "a", "label": 1}', [1, -1, -1]),
        ('{"key": "a", "label": 1}\n{"key": "a", "label": 2}', "f:2: 'a' is labelled 2, and 1 above"),
        ('{"key": "a", "label": -1}', "f:1: label is -1; give a whole number from 0 to 2"),
        ('{"key": "a", "label": 3}', "f:1: label is 3"),
        ('{"key": "a", "label": 1.0}', "f:1: label is 1.0"),
        ('{"key": "a", "label": true}', "f:1: label is True"),
        ('{"key": "a", "label": NaN}', "f:1: label is nan"),
        ('{"key": "a"}', "f:1: label is None"),
        ('{"key": 7, "label": 1}', "f:1: no JSON object with a key"),
        ('{"key": "a", "label": 1}\n["a", 1]', "f:2: no JSON object with a key"),
        ('{"plan": {}, "entries": [{"label": 2}]}', "f:1: no JSON object with a key"),
        ('{"plan": {}, "entries": [', "f:1: no JSON object with a key"),
        ("[" * 100_000, "f:1: no JSON object with a key"),
        ('{"key": "z", "label": 1}', "f has a label for none of the 3 pairs"),
        ("", "f has a label for none"),
        ('{"key": "\u00e4", "label": 1}'.encode("latin-1"), "f:1 is not UTF-8"),
        ('{"key": "a", "label": 1}'.encode("utf-16"), "f is UTF-16"),
    ],
)  # fmt: skip
def test_labels_and_flags_of_pairs(tmp_path: Path, text: str | bytes, labels: list[int] | str) -> None:
    path = tmp_path / "f"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(labels, str):
        refused(labels, read_labels, str(path), INDEX, 3)
    else:
        assert read_labels(str(path), INDEX, 3).tolist() == labels
        assert read_flags(str(path), INDEX).tolist() == [label >= 0 for label in labels]


def test_a_byte_order_mark_is_no_letter_of_a_caption_a_spec_or_published_points(tmp_path: Path, spec: Path) -> None:
    assert caption(f"{BOM}a cat".encode()) == "a cat"
    assert caption(f'{BOM}{{"caption": "a cat"}}'.encode(), "json.caption") == "a cat"
    for value in ("null", "7", '["a cat"]'):
        with pytest.raises(DecodeError, match="no_caption"):
            caption(f'{{"caption": {value}}}'.encode(), "json.caption")
    marked = spec.with_name("marked.yaml")
    marked.write_bytes(BOM.encode() + spec.read_bytes())
    assert load(marked).spec == load(spec).spec
    (tmp_path / "points.json").write_text(f'{BOM}{{"a": [[0.1], [0.5]]}}', encoding="utf-8")
    assert [point[:2] for point in read_published(tmp_path / "points.json")["a"]] == [(0.1, 0.5)]
