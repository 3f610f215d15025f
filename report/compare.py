"""Several studies compared in one figure: one figure, one verdict, one table; panels stand by way of pre-training."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from data.refusal import UserError
from report.exports import judge, verdict_files
from report.imports import write_files
from report.load import Study, read_study
from report.plots import frontier as figures
from report.points import panels
from report.tables import as_csv, results
from report.values import Panel
from report.verdict import notes, sentences


def joint_panels(studies: Sequence[tuple[str, Study]]) -> list[Panel]:
    """The panels of all studies, named ones, those of one way of pre-training side by side."""
    ways: dict[str, list[Panel]] = {}
    for name, study in studies:
        for panel in panels(study):
            title = f"{panel.title} ({name})"
            ways.setdefault(panel.title, []).append(panel._replace(title=title, heading=title))
    return [panel for members in ways.values() for panel in members]


def named(studies: Sequence[Study]) -> list[tuple[str, Study]]:
    """Each study with a name of its own: the plan's, the folder's if plans share one, the whole path if folders do too."""
    for names in (
        [study.plan.name for study in studies],
        [study.folder.resolve().name for study in studies],
        [str(study.folder.resolve()) for study in studies],
    ):
        if len(set(names)) == len(names):
            return list(zip(names, studies, strict=True))
    twice = ", ".join(str(study.folder) for study in studies)
    raise UserError(f"of {twice}, two are one folder, expected different studies to compare; name each once")


def write_comparison(folders: Sequence[Path], out: Path | None) -> list[str]:
    """Writes the comparison into the folder, or into the first study's report; returns what to say. Raises UserError."""
    studies = named([read_study(folder) for folder in folders])
    rest = "-".join(folder.resolve().name for folder in folders[1:])
    into = out or folders[0] / "report" / f"compare-{rest}"
    found = joint_panels(studies)
    judged = judge(found)
    figure = figures.frontier(found)
    command = f"python -m report {shlex.join(map(str, folders))}"
    tables = [(name, *results(study)) for name, study in studies]
    columns = list(dict.fromkeys(column for _, heads, _ in tables for column in heads))
    rows = [{**row, "study": name} for name, _, members in tables for row in members]
    said = sentences(found, judged.differences)
    remarks = [f"{name}: {remark}" for name, study in studies for remark in notes(study)] + judged.notes
    files = {
        "frontier.png": figures.drawn(figure, "png", command),
        "frontier.pdf": figures.drawn(figure, "pdf", command),
        "results.csv": as_csv(["study", *columns], rows).encode(),
        "notes.txt": "".join(f"{remark}\n" for remark in remarks).encode(),
        **verdict_files(judged),
    }
    write_files(into, files)
    return [*said, *(f"Note: {remark}" for remark in remarks), str(into / "verdict.csv"), str(into / "frontier.png")]
