"""Several studies on one Markdown page."""

from pathlib import Path

import pytest
from PIL import Image
from test_figures import study
from test_scores import MMCL, SSL, journals

from report.__main__ import main
from report.markdown import plain


def test_two_studies_on_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    first = journals(tmp_path / "one", {"mmcl": MMCL, "mmcl_ssl": SSL}, val_loss={1: 0.5, 2: 0.4, 3: 0.3})
    second = study(tmp_path / "two", a={"swept": {"clean.objective.within": 1.0}, "points": [(0.7, 0.04)]})
    out = tmp_path / "docs/results.md"
    out.parent.mkdir()
    assert main([str(first), str(second), "--markdown", str(out)]) == 0
    assert "figures" in capsys.readouterr().out
    page = out.read_text()
    assert "## one" in page
    assert "## s" in page
    # seed 0: top-1 0.78 of 100 pictures at ASR 0.04 of 90; Wilson's intervals by hand: 0.689-0.850 and 0.016-0.102
    start, best = "80.0 % \\[71.1, 86.7\\] at ASR 100.0 % \\[95.9, 100.0\\]", "78.0 % \\[68.9, 85.0\\] at ASR 4.0 %"
    assert f"| MMCL | CleanCLIP | 0 | {start} | {best}" in page
    assert "(3 of 3)" in page
    assert "| MMCL | CleanCLIP | val\\_loss |" in page
    assert "no difference, however large, can be called significant" in page
    assert f"python -m report {first}" in page
    for name in ("one-frontier", "one-dynamics", "s-frontier"):
        assert f"](results/{name}.png)" in page
        with Image.open(tmp_path / f"docs/results/{name}.png") as opened:
            assert opened.info["Description"].startswith("python -m report")
    assert "s-dynamics" not in page  # of the second study only what answers its question
    out.write_text(page.replace("# Results", "# Mine\n\nWords of ours.", 1))
    request.getfixturevalue("blank_figures")
    assert main([str(first), str(second), "--markdown", str(out)]) == 0
    assert out.read_text().startswith("# Mine\n\nWords of ours.")
    assert out.read_text().count("## one") == 1


@pytest.mark.usefixtures("blank_figures")
def test_each_value_of_a_setting_has_its_row(tmp_path: Path) -> None:
    mild = {"swept": {"clean.objective.within": 1.0}, "points": [(0.7, 0.04), (0.79, 0.3)]}
    heavy = {"swept": {"clean.objective.within": 4.0}, "points": [(0.6, 0.2)]}
    out = tmp_path / "results.md"
    assert main([str(study(tmp_path / "s", a=mild, b=heavy)), "--markdown", str(out)]) == 0
    page, start = out.read_text(), "80.0 % at ASR 100.0 %"
    assert f"| 1 | MMCL | CleanCLIP | 0 | {start} | 70.0 % at ASR 4.0 % | 79.0 % at ASR 30.0 % |" in page
    assert f"| 4 | MMCL | CleanCLIP | 0 | {start} | none | none |" in page


@pytest.mark.usefixtures("blank_figures")
def test_sections_of_other_studies_are_kept(tmp_path: Path) -> None:
    first = study(tmp_path / "one", a={"points": [(0.7, 0.04)]})
    second = journals(tmp_path / "two", {"mmcl": MMCL, "mmcl_ssl": SSL})
    out, whole = tmp_path / "results.md", tmp_path / "whole.md"
    for part in (first, second, first, second):
        assert main([str(part), "--markdown", str(out)]) == 0
    assert main([str(first), str(second), "--markdown", str(whole)]) == 0
    assert out.read_text() == whole.read_text().replace("whole/", "results/")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    between = journals(tmp_path / "between", {"mmcl": MMCL, "mmcl_ssl": SSL})
    assert main([*map(str, (first, between, second)), "--markdown", str(out)]) == 0
    earlier, now = ([line for line in page.read_text().splitlines() if line.startswith("## ")] for page in (whole, out))
    assert now == [earlier[0], "## between", earlier[1]]


def test_what_is_no_study_or_no_page_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--markdown", str(tmp_path / "a.md")]) == 2
    assert "study.json" in capsys.readouterr().err
    assert main([str(tmp_path), "--markdown", str(tmp_path / "a.txt")]) == 2
    assert "ends in .md" in capsys.readouterr().err
    assert main([str(tmp_path), "--markdown", str(tmp_path / "a.md"), "--out", str(tmp_path)]) == 2
    assert "leave --out out" in capsys.readouterr().err
    assert main(["--import", "x.json", "--markdown", str(tmp_path / "a.md")]) == 2


def test_others_words_are_words() -> None:
    assert plain("a|b\n[c](d) <e> `f` *g* #h") == "a\\|b \\[c\\](d) \\<e\\> \\`f\\` \\*g\\* \\#h"
