"""Several studies compared: one figure, one verdict, one table; panels stand by way of pre-training."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from data.refusal import UserError
from records.spec_json import aims_in
from report.load import Study
from report.matrix_runs import images_of, plain
from report.plots.frontier import frontier
from report.plots.style import render
from report.points import Panel, panels
from report.submission import open_study, report_folder, stem
from report.tables import as_csv, verdict_files
from report.verdict import judge, notes
from report.write import write_files

Measured = list[tuple[str, Study, list[Panel]]]  # each study's name, the study, its panels


def joint_panels(measured: Measured) -> list[Panel]:
    """The panels of all studies, named ones, those of one way of pre-training side by side."""
    ways: dict[str, list[Panel]] = {}
    for name, _, members in measured:
        for panel in members:
            title = f"{panel.title} ({name})"
            ways.setdefault(panel.title, []).append(panel._replace(title=title, heading=title))
    return [panel for members in ways.values() for panel in members]


def measure(studies: Sequence[Study]) -> Measured:
    """Each study's panels, under a name of its own: the plan's, or the folder's, or the whole path, if others are shared."""
    for names in (
        [study.plan.name for study in studies],
        [study.folder.resolve().name for study in studies],
        [str(study.folder.resolve()) for study in studies],
    ):
        if len(set(names)) == len(names):
            return [(name, study, panels(study)) for name, study in zip(names, studies, strict=True)]
    twice = ", ".join(str(study.folder) for study in studies)
    raise UserError(f"of {twice}, two are one folder, expected different studies to compare; name each once")


def _unlike(studies: Sequence[Study]) -> list[str]:
    """A note for what the studies' numbers are of, where that is not the same in all: differences are then not of the models
    alone."""
    pictures = {frozenset(images_of(study, one) for one in study.records if one.finished) for study in studies}
    attacks = {frozenset(plain(aims_in(one.attack)) for one in study.records if one.attack) for study in studies}
    unlike = [what for what, of in (("pictures or labels", pictures), ("triggers or targets", attacks)) if len(of) > 1]
    words = f"The studies' numbers are of different {' and '.join(unlike)}: no difference here is of the models alone."
    return [words] if unlike else []


def write_comparison(folders: Sequence[Path], out: Path | None) -> list[str]:
    """Writes the comparison into the folder or the first study's report; returns the lines to print. Raises UserError."""
    measured = measure([open_study(folder) for folder in folders])
    rest = "-".join(stem(folder) for folder in folders[1:])
    into = out or report_folder(folders[0]) / f"compare-{rest}"
    judged = judge(joint_panels(measured))
    drawing = frontier(judged.panels)
    command = f"python -m report {shlex.join(map(str, folders))}"
    columns = list(dict.fromkeys(column for _, study, _ in measured for column in study.results.columns))
    rows = [{**row, "study": name} for name, study, _ in measured for row in study.results.rows]
    remarks = _unlike([study for _, study, _ in measured])
    remarks += [f"{name}: {remark}" for name, study, members in measured for remark in notes(study, members)] + judged.notes
    files = {
        "frontier.png": render(drawing, "png", command),
        "frontier.pdf": render(drawing, "pdf", command),
        "results.csv": as_csv(["study", *columns], rows).encode(),
        "notes.txt": "".join(f"{remark}\n" for remark in remarks).encode(),
        **verdict_files(judged),
    }
    write_files(into, files)
    lines = [*judged.sentences, *(f"Note: {remark}" for remark in remarks)]
    return [*lines, str(into / "verdict.csv"), str(into / "frontier.png")]
