"""scores.jsonl: written whole, read line by line, refused by line."""

from pathlib import Path

import pytest

from data.refusal import Missing, UserError
from records.json_file import Damaged
from records.scores import LONGEST, ScoreRow, ScoreWriter, read_scores

ROWS = [("a", "slof", 1.5), ("b", "slof", -2.0), ("a", "lid", 1e300)]


def write(path: Path) -> Path:
    with ScoreWriter(path) as file:
        file.add(ROWS[:1])
        file.add(ROWS[1:])
    return path


def test_rows_come_back(tmp_path: Path) -> None:
    path = write(tmp_path / "scores.jsonl")
    rows = list(read_scores(path))
    assert [(row.key, row.kind, row.score) for _, row in rows] == ROWS
    assert [number for number, _ in rows] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "scores.jsonl")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"), ScoreWriter(path) as file:
        file.add([("a", "slof", 1.0), ("b", "slof", float("nan"))])
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_others_need_neither_kind_nor_digest(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_bytes(b'{"key": "a", "score": 1, "more": [1]}\r\n\n{"key": "b", "score": 2e0}')
    assert [row for _, row in read_scores(path)] == [ScoreRow(key="a", score=1.0), ScoreRow(key="b", score=2.0)]
    path.write_bytes(b"")
    assert list(read_scores(path)) == []


@pytest.mark.parametrize("change", ["byte", "line", "twice", "unsealed"])
def test_a_line_of_ours_that_was_changed_is_damage(change: str, tmp_path: Path) -> None:
    path = write(tmp_path / "scores.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines = {
        "byte": [lines[0], lines[1].replace(b"-2.0", b"-3.0"), lines[2]],
        "line": [lines[0], lines[2]],
        "twice": [lines[0], lines[0], *lines[1:]],
        "unsealed": [lines[0], b'{"key": "b", "kind": "slof", "score": 9.0}\n'],
    }[change]
    path.write_bytes(b"".join(lines))
    with pytest.raises(Damaged, match="line 2 is not as it was written"):
        list(read_scores(path))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[1]", "it is no JSON object"),
        (b'{"key": "a"}', "it has no score"),
        (b'{"score": 1}', "it has no key"),
        (b'{"key": 3, "score": 1}', "its key is no text"),
        (b'{"key": "a", "score": "1"}', "its score is no finite number"),
        (b'{"key": "a", "score": NaN}', "its score is no finite number"),
        (b'{"key": "a", "score": 1e999}', "its score is no finite number"),
        (b'{"key": "a", "score": true}', "its score is no finite number"),
        (b"\xff\xfe", "it is no JSON object"),
        (b"[" * 5000, "it is no JSON object"),
        (b"x" * (LONGEST + 2), "the line has more than 65,536 bytes"),
    ],
)
def test_a_line_that_is_no_row_is_refused(body: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_bytes(b'{"key": "a", "score": 1}\n' + body + b"\n")
    with pytest.raises(UserError, match=f":2: {words}; give"):
        list(read_scores(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="No such file"):
        list(read_scores(tmp_path / "none"))
    with pytest.raises(UserError, match="is no file"):
        list(read_scores(tmp_path))
