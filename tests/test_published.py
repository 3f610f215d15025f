"""Published sweep files: tables equal to a brute-force reading, warnings, refusals."""

import base64
import csv
import json
import math
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from measures.frontier import FrontierPoint
from report.__main__ import main
from report.published import frontier_rows, overlaps, read_all, remarks

Points = list[tuple[float, float]]
HAND = {
    "a": [[0.99, 0.50, 0.04, 0.008], [0.24, 0.22, 0.20, 0.10]],
    "part of a": [[0.50, 0.04], [0.22, 0.20]],
    "nothing": [],
    "$x^{2": [[0.99, 1.0], [0.24, 0.25]],
}


def test_a_published_file_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps(HAND))
    assert main(["--import", "sweep.json"]) == 0
    message = capsys.readouterr().out
    assert "a      " in message
    assert "10.00 @ 0.80" in message
    assert "part of a is a subset of a: all its points, 2, are also there" in message
    assert "a and $x^{2 share identical points: 1 (of 4 and 2)" in message
    assert "no accuracy floors and no drops" in message
    out = tmp_path / "sweep-report"
    rows = list(csv.DictReader((out / "frontier.csv").read_text().splitlines()))
    assert [row["best_top1_at_asr_0.05"] for row in rows] == ["0.2", "0.2", "", ""]
    assert float(rows[0]["hypervolume"]) == pytest.approx(0.032 * 0.10 + 0.46 * 0.20 + 0.49 * 0.22 + 0.01 * 0.24)
    assert len((out / "results.csv").read_text().splitlines()) == 9
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "frontier.pdf").read_bytes().startswith(b"%PDF")
    page = (out / "index.html").read_text()
    drawings = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(set(drawings)) == 2  # for wide and narrow screens, in the reader's scheme
    assert all(b"prefers-color-scheme:dark" in base64.b64decode(drawing) for drawing in drawings)
    assert not re.search(r"https?:|<script|@import|url\(", re.sub('base64,[^"]*', "", page))
    assert "10.00 @ 0.80" in page
    assert '<td data-head="points"><span>4</span>' in page


def test_subsets_come_first_and_chance_overlaps_are_counted() -> None:
    """Twelve groups that share one collapsed model, the last two of them a group and its part."""
    points = {f"g{n:02}": [(0.0, 0.1), (round(0.01 * n + 0.2, 2), 0.3)] for n in range(11)} | {"part": [(0.30, 0.3)]}
    groups = {name: [FrontierPoint(asr, top1, at) for at, (asr, top1) in enumerate(rows)] for name, rows in points.items()}
    said = remarks(groups)
    assert said[1] == "part is a subset of g10: all its points, 1, are also there; count them once."
    assert sum("share identical points: 1" in line for line in said) == 5
    assert said[-1] == "50 more pairs of groups share points, no more than these, as collapsed models do."  # of 11 * 10 / 2


def test_two_files_keep_their_groups_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"g": [[0.5], [0.5]]}))
    groups = read_all([tmp_path / "one.json", tmp_path / "two.json"])
    assert list(groups) == ["one: g", "two: g"]
    assert [overlap.sentence for overlap in overlaps(groups)] == [
        "one: g and two: g hold the same points, 1; count them once."
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("[1]", "a list"),
        ("{}", "an object"),
        ('{"a": [[0.1], [0.1, 0.2]]}', "1 ASR and 2 accuracies"),
        ('{"a": [[0.1], [12.4]]}', "divide percents"),
        ('{"a": [[-0.1], [0.4]]}', "fraction"),
        ('{"a": [[NaN], [0.4]]}', "NaN"),
        ('{"a": [[true], [0.4]]}', "fraction"),
        ('{"a": [["0.1"], [0.4]]}', "fraction"),
        ('{"a": {"asr": [0.1]}}', "an object"),
        ('{"a": [0.1, 0.2]}', "a list"),
        ('{"a": [], "a": []}', "twice"),
        ('{"\\ud800": []}', "can be printed"),
        ('{"a\\n": []}', "can be printed"),
        ("[" * 100_000, "not JSON"),
        (f'{{"a": [[0.1], [1{"0" * 400}]]}}', "fraction"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["--import", str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert str(path) in err
    assert not (tmp_path / "out").exists()


def test_large_and_missing_and_unreadable_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(65 * 2**20)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    for name, message in (("large.json", "larger"), ("none.json", "cannot be read"), ("bytes.json", "not JSON")):
        assert main(["--import", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert main([]) == 2
    assert "--import" in capsys.readouterr().err


def made(seed: int, count: int, steps: int) -> Points:
    """That many points from a grid of so many steps, so that small grids give ties."""
    chance = random.Random(seed)
    return [(chance.randint(0, steps) / steps, chance.randint(0, steps) / steps) for _ in range(count)]


def reading(points: Points) -> tuple[list[tuple[float, float] | None], tuple[float, float] | None, int, float]:
    """The frontier read anew: by sorting for the caps, and by a table of the best accuracy under each attack success."""
    best: list[tuple[float, float] | None] = []
    for cap in (0.01, 0.05, 0.1, 0.2):
        under = sorted(((-top1, asr) for asr, top1 in points if asr <= cap))
        best.append((-under[0][0], under[0][1]) if under else None)
    lowest = min(((asr, -top1) for asr, top1 in points), default=None)
    highest: dict[float, float] = {}
    for asr, top1 in points:
        highest[asr] = max(top1, highest.get(asr, -1.0))
    unbeaten, area, so_far, at = 0, 0.0, -1.0, 0.0
    for asr in sorted(highest):
        area += max(so_far, 0.0) * (asr - at)
        at = asr
        if highest[asr] > so_far:
            so_far, unbeaten = highest[asr], unbeaten + 1
    return best, (lowest[0], -lowest[1]) if lowest else None, unbeaten, area + max(so_far, 0.0) * (1 - at)


group = st.just([]) | st.builds(made, st.integers(0, 10**6), st.integers(1, 5_000), st.sampled_from([3, 100, 49_950]))
hand = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.lists(group | hand, min_size=1, max_size=3))
def test_the_frontier_is_the_brute_force_reading(groups: list[Points]) -> None:
    content = {f"g{n}": [[a for a, _ in g], [t for _, t in g]] if g else [] for n, g in enumerate(groups)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.json"
        path.write_text(json.dumps(content))
        rows = frontier_rows(read_all([path]))
    for points, row in zip(groups, rows, strict=True):
        best, lowest, unbeaten, area = reading(points)
        answers = [(row[f"best_top1_at_asr_{c:g}"], row[f"its_asr_{c:g}"]) for c in (0.01, 0.05, 0.1, 0.2)]
        assert answers == [pair or (None, None) for pair in best]
        assert (row["lowest_asr"], row["its_top1"]) == (lowest or (None, None))
        assert (row["points"], row["pareto_points"]) == (len(points), unbeaten)
        assert math.isclose(row["hypervolume"] or 0.0, area, abs_tol=1e-9)
