"""The code that made a run is written down: a checkout that changes under a study is seen."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from submissions import submission

from configs.spec import load
from engine.study import study
from records.card import Card
from records.code import DECIDES, ROOT, digest_now, loaded_digest
from records.json_file import DIGEST, write_json
from report.submission import open_study
from report.verdict import make_report


def test_the_digest_is_of_names_and_contents_of_sources_alone(tmp_path: Path) -> None:
    for name, text in {
        "a/x.py": "1",
        "a/in/y.json": "2",
        "b/z.py": "3",
        "a/__pycache__/x.pyc": "4",
        "a/read.me": "5",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    digests = [digest_now(["a"], tmp_path)]
    assert digests[0] == digest_now(["a"], tmp_path)
    (tmp_path / "b/z.py").write_text("another folder")
    (tmp_path / "a/__pycache__/x.pyc").write_text("compiled anew")
    (tmp_path / "a/read.me").write_text("no code")
    assert digest_now(["a"], tmp_path) == digests[0]
    (tmp_path / "a/x.py").write_text("7")
    digests.append(digest_now(["a"], tmp_path))
    (tmp_path / "a/x.py").rename(tmp_path / "a/w.py")
    digests.append(digest_now(["a"], tmp_path))
    (tmp_path / "a/new.py").write_text("")
    digests.append(digest_now(["a"], tmp_path))
    assert len(set(digests)) == 4


def test_all_folders_of_code_are_looked_at() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"} <= {*DECIDES, "report"}
    assert loaded_digest() == digest_now(DECIDES)


@pytest.mark.parametrize("changed", [False, True])
def test_a_study_whose_code_has_changed_leaves_the_report_to_the_new_code(
    changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[Path] = []
    monkeypatch.setattr(study, "_report", reported.append)
    monkeypatch.setattr(study, "digest_now", lambda: "of now")
    finished: Any = SimpleNamespace(folder=tmp_path, runs=[], failures=list)
    assert study.conclude(finished, "of then" if changed else "of now") == 0
    assert reported == ([] if changed else [tmp_path])
    assert (f"python -m report {tmp_path} writes it by the new code" in capsys.readouterr().err) == changed


def test_ranks_compare_their_code(spec: Path) -> None:
    mine, theirs = (study._facts_of_rank(load(spec), source) for source in ("a", "b"))
    assert {name for name, value in mine.items() if theirs[name] != value} == {"code of Antidote"}


def test_runs_of_different_code_are_a_note(tmp_path: Path) -> None:
    folder = submission(tmp_path / "s", seeds=(0,))

    def said() -> list[str]:
        return [note for note in make_report(open_study(folder)).notes if "different code" in note]

    runs = sorted(path.parent for path in folder.glob(f"*/{Card.FILE}"))
    for number, run in enumerate(runs):
        card = {key: value for key, value in json.loads((run / Card.FILE).read_text()).items() if key != DIGEST}
        write_json(
            run / Card.FILE, {**card, "versions": {**card["versions"], "antidote": "0.1.0+a" if number else "0.1.0+b"}}
        )
        assert len(said()) == (0 if number == 0 else 1)
    others = f"0.1.0+a ({len(runs) - 1} runs), 0.1.0+b (1 run)"
    assert said() == [f"Its runs were made by different code: {others}. What changed may show in the numbers."]
