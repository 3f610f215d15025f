"""specs/paper: every file loads and expands, and its header says what it does."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from configs.plan import runs
from configs.spec import load
from engine.estimate.dry_run_folder import dry_run_folder, total
from engine.estimate.gpus import Assumed
from engine.models.clip import has_norms
from engine.training.norm_groups import norm_groups
from engine.training.pairs import StudyPairs

FILES = sorted((ROOT / "specs/paper").glob("*.yaml"))


def header(path: Path) -> dict[str, str]:
    """The header's paragraphs by their first word."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")][1:]
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
    found = re.split(r"^([A-Z][a-z]+): ", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in zip(found[1::2], found[2::2], strict=True)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_a_header_says_how_many_runs_there_are_and_what_they_cost(path: Path, tmp_path: Path) -> None:
    said = header(path)
    assert {"Question", "Runs", "Published", "Differs", "Cost", "Data"} <= said.keys()
    loaded, notes = load(path), set[str]()
    pairs = StudyPairs(tmp_path, Assumed(1, None).world, tmp_path)
    one, first = total(loaded, None, pairs, notes), total(loaded, "pretrain", pairs, notes)
    words = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((one.pretrainings, "pre-training"), (one.cleanings, "cleaning"))]
    assert said["Runs"] == f"{', '.join(words)}."
    assert said["Cost"].startswith(f"about {one.hours:,.0f} GPU-hours of A100-40GB, {first.hours:,.0f} of them pre-training")
    assert "2311.14948" in said["Published"]
    assert loaded.spec.name == f"paper-{path.stem}"
    question = loaded.spec.question or ""
    assert question[0].lower() + question[1:] == said["Question"]
    assert not [note for note in notes if "not counted" in note]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_processes_hold_groups_of_batch_norm_whole_or_together(path: Path) -> None:
    """As the header says: pre-training on 8 GPUs or one, cleaning on one; pre-training on 64 too, with 8 groups."""
    said = header(path)["Processes"]
    for run in runs(load(path).points):
        if has_norms(run.spec.model.name):
            several = run.stage == "pretrain" and said.startswith("deepspeed")
            for gpus in (8, 16, 32, 64) if several else (1,):
                groups = norm_groups(run, gpus)
                assert groups is not None
                assert groups.pairs == min(run.spec.model.norm_group, run.settings.batch)
                assert groups.processes == max(1, groups.pairs * gpus // run.settings.batch)


def test_the_folder_has_one_row_a_file() -> None:
    text, broken = dry_run_folder(ROOT / "specs/paper", [], None, Assumed(1, None), lambda words: None)
    assert not broken
    rows = [line.split("│")[1].strip() for line in text.splitlines() if ".yaml" in line]
    assert rows == [path.name for path in FILES]
    table = [line.split("│") for line in text.splitlines() if line.startswith("│ ")]
    for column in (2, 3):
        *each, all_together, done_once = (int(cells[column].replace(",", "")) for cells in table)
        assert sum(each) == all_together > done_once
    distinct = {run.fingerprint for path in FILES for run in runs(load(path).points) if run.stage != "clean"}
    assert int(table[-1][2]) == len(distinct)
