"""Any text, as a spec or as --set, ends in a spec or in one sentence, in bounded time and memory."""

import os
import resource
import time
from pathlib import Path

import pytest
from conftest import SPEC
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.source import DEPTH, LIMIT, VALUES, read_source
from configs.spec import load
from data.refusal import UserError

K = 100_000
AT_ONCE = 10  # seconds of CPU: several times what the worst of these takes on a busy machine, far below what a text can cost
HARD = {  # text: words of the sentence
    "[" * K: "more than 24 deep",
    "{" * K: "a key is no plain word",
    "- " * (K // 2): "more than 24 deep",
    "? " * (K // 2): "a key is no plain word",
    "[a: [a: " * 10_000: "more than 24 deep",
    "[" + "1," * (VALUES + 1) + "]": f"holds more than {VALUES:,} keys and values",
    "a: &x [1]\nb: *x\n": ":2: aliases (*name) are not allowed",
    "a: &a [l, l]\nb: &b [*a, *a]\nc: &c [*b, *b]\n": ":2: aliases (*name) are not allowed",
    "<<: {a: 1}\n": ":1: '<<' merges nothing",
    "a: 1\nb: 2\na: 3\n": ":3: 'a' is a duplicate key, first given in line 1",
    "!!python/object:os.system x\n": ":1: tags (!!python/object:os.system) are not allowed",
    "a: !!omap [b: 1]\n": ":1: tags (!!omap) are not allowed",
    "!!python/object/apply:os.system ['x']\n": "tags (",
    "seed: " + "9" * 5_000: ":1: 99",
    "seed: -0x" + "f" * 5_000: "too large; expected whole numbers below 2^64",
    "seed: 18446744073709551616\n": "18446744073709551616 is too large",
    "a: b\0c\n": ":1: holds the character U+0000",
    'a: 1\nb: "\\0"\n': ":2: holds the character U+0000",
    'a: "\\ud800"\n': ":1: holds the character U+D800",
    'a: "\\U99999999"\n': "is not valid YAML",
    "%YAML " + "9" * 5_000 + ".1\n---\na: 1\n": "is not valid YAML",
    "--- \na: 1\n---\nb: 2\n": ":3: a second document begins",
    "a:\n\t- b\n": ":2: is not valid YAML: while scanning for the next token, found character '\\t'",
    "a: [\n": "is not valid YAML: while parsing a flow",
    "name: a: b\n": ":1: is not valid YAML: mapping values are not allowed here",
    "- 1\n": "holds no mapping",
    "": "holds no mapping",
    "# " + "x" * LIMIT: f"has more than {LIMIT:,} bytes",
}


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_a_text_that_is_no_spec_is_refused_at_once_by_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = time.process_time()
    with pytest.raises(UserError) as caught:
        read_source(path)
    assert time.process_time() - before < AT_ONCE
    words = str(caught.value)
    assert HARD[text] in words
    assert words.startswith(str(path))
    assert "\n" not in words
    assert len(words) < len(str(path)) + 200
    assert not any(strange in words for strange in ("<unicode string>", "ruamel", "import sys", "NoneType"))


@pytest.mark.parametrize("text", [text for text in HARD if "\0" not in text and "holds no mapping" not in HARD[text]])
def test_a_setting_that_is_no_value_is_refused_at_once(spec: Path, text: str) -> None:
    before = time.process_time()
    with pytest.raises(UserError) as caught:
        load(spec, [f"question={text}"])
    assert time.process_time() - before < AT_ONCE
    assert str(caught.value).startswith(("--set 'question=", '--set "question='))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (".", "is a folder; expected a file"),
        ("/dev/zero", "is a pipe or a device; expected a file"),
        ("pipe", "is a pipe or a device; expected a file"),
        ("x" * 300, "File name too long"),
        ("a\0b", "null byte"),
        ("none/none.yaml", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("utf-16", ":1: is not UTF-8 text"),
        ("latin-1", ":2: is not UTF-8 text"),
    ],
)
def test_what_is_no_file_of_text_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    Path("utf-16").write_text("name: x\n", encoding="utf-16")
    Path("latin-1").write_bytes("name: x\nquestion: für\n".encode("latin-1"))
    with pytest.raises(UserError, match="expected") as caught:
        read_source(path)
    assert words in str(caught.value)


def test_the_marks_that_editors_put_before_and_between_lines_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: >\r\n  two\r\n  words\r\n")
    assert read_source(path).values == {"a": 1, "b": "two words\n"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("True", True), ("FALSE", False), ("tRue", "tRue"), ("~", None),
        ("Null", None), ("", None), ("'~'", "~"), ("012", 12), ("0o12", 10), ("0x1F", 31), ("-0b11", -3), ("1_000", 1000),
        ("1e-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-.5e1", -5.0), ("1e400", float("inf")), ("-.inf", float("-inf")),
        ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("1.2.3", "1.2.3"), ("0o8", "0o8"), ("=", "="), ("5 # five", 5),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"a: {text}\n")
    found = read_source(path).values["a"]
    assert (found, type(found)) == (value, type(value))


FRAGMENTS = (
    *"[]{},:-?&*!|>'\"%@`# \n\t\\~<=", "a: ", "\n  ", "- ", "!!str ", "&a ", "*a", '"\\x', "%YAML 1.2\n", "---\n", "...\n",
    "0x", "1e5", ".nan", "9" * 30, "name: ", "seed: ", "sweep: {", "clean.optimizer.rate: ", "low: 0", "points: 99999999999",
    "arm: {a: {", "search: {kind: random, trials: 9999999}", "limit: 99999999", "data: ", "{kind: mmcl}", "measure: ",
)  # fmt: skip
WORDS = [
    "name",
    "seed",
    "data",
    "attack",
    "model",
    "pretrain",
    "clean",
    "measure",
    "sweep",
    "machine",
    "objective",
    "kind",
    "mmcl",
    "start",
    "path",
    "test",
    "trigger",
    "poison",
    "count",
    "search",
    "optuna",
    "random",
    "trials",
    "limit",
    "low",
    "high",
    "points",
    "scale",
    "log",
    "arm",
    "clean.optimizer.rate",
    "pretrain.objective",
    "data.test.x",
    "who",
    "names",
] + [""]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
)


def bounded(path: Path, sets: list[str]) -> None:
    """Loads a spec within 2 s; a fault is one UserError, of few lines, in words of ours."""
    before = time.process_time()
    try:
        load(path, sets)
    except UserError as error:
        lines = str(error).splitlines()
        assert len(lines) <= 53, lines
        assert all(len(line) < 700 for line in lines), lines
    assert time.process_time() - before < AT_ONCE


def memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(folder: Path, examples: int) -> None:
    """Texts of YAML's own pieces, cut and mixed specs, and trees of a spec's own words as --set."""
    path, whole = folder / "fuzz.yaml", SPEC.format(world="world")
    begin = memory()

    @settings(max_examples=examples)
    @given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join) | st.text(max_size=60), st.integers(0, len(whole)))
    def texts(text: str, at: int) -> None:
        for body in (text, whole[:at] + text + whole[at:], whole[:at] + text):
            path.write_bytes(body.encode("utf-8", "surrogatepass"))
            bounded(path, [])
        path.write_text(whole)
        bounded(path, [f"question={text}", text])

    @settings(max_examples=examples)
    @given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(".".join), TREES)
    def trees(place: str, tree: object) -> None:
        path.write_text(whole)
        bounded(path, [f"{place}={yaml_of(tree)}"])

    texts()
    trees()
    assert memory() - begin < 300 << 20


def yaml_of(tree: object) -> str:
    """A tree in flow style."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{yaml_of(key)}: {yaml_of(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(yaml_of, tree)) + "]"
    if isinstance(tree, str):
        return "'" + tree.replace("'", "''") + "'"
    return "null" if tree is None else str(tree).replace("inf", ".inf").replace("nan", ".nan")


def test_any_text_ends_in_a_spec_or_one_error(tmp_path: Path) -> None:
    fuzz(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_any_of_many_texts_ends_in_a_spec_or_one_error(tmp_path: Path) -> None:
    fuzz(tmp_path, 4_000)


@pytest.mark.parametrize(
    "sets",
    [
        ["sweep={clean.optimizer.rate: {low: 0, high: 1, points: 99999999999}}"],
        ["sweep={search: {kind: random, trials: 99999999999}, clean.optimizer.rate: {low: 0, high: 1}}"],
        ["sweep={search: {kind: optuna, trials: 99999999999, together: 99999999999}, clean.epochs: [1, 2]}"],
        [
            "sweep={search: {kind: random, trials: 9}, "
            + ", ".join(f"a{i}: {{x{j}: {{pretrain.epochs: {j}}} for j in range(3)}}" for i, j in [(0, 0)])
            + "}"
        ],
        ["sweep={" + ", ".join(f"data.test.s{i}: [a, b, c, d, e, f, g, h]" for i in range(40)) + "}"],
        ["sweep={seed: {low: 0, high: 1.0e+300, whole: true, points: 3}}"],
        ["question=" + "x" * K],
        ["x" * K + "=1"],
        [".".join("a" * (DEPTH + 1)) + "=1"],
        [".=1"],
        ["=1"],
        ["name=" + "n" * 300],
        ["data.pretrain.shards=" + "x" * 5_000],
    ],
)
def test_settings_that_would_expand_without_end_are_refused(spec: Path, sets: list[str]) -> None:
    bounded(spec, sets)
    if "shards" not in sets[0] and not sets[0].startswith("question"):
        with pytest.raises(UserError):
            load(spec, sets)
