"""The report on published sweep files: frontier tables, figure and points, from what the files hold and no more."""

import shlex
from pathlib import Path
from typing import Any

from data.refusal import UserError
from measures.frontier import CAPS, best_accuracy, hypervolume, lowest_asr, pareto
from records.folder import write_whole
from report.plots import frontier as figures
from report.published import Groups, overlaps, panels, read_published, sentence
from report.tables import as_csv

DRAWN = 60  # groups in the figure; more do not fit a picture
NO_START = (
    "The file holds points alone: no start's accuracy, so no accuracy floors and no drops; no learning rates, seeds, epochs."
)


def read_all(paths: list[Path]) -> Groups:
    """The groups of all files; of several files, each group's name begins with its file's. Raises UserError."""
    if len({path.stem for path in paths}) < len(paths):
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"two of {names} have one name, expected different ones to tell their groups apart; rename a file")
    read = {path.stem: read_published(path) for path in paths}
    if len(read) == 1:
        return next(iter(read.values()))
    return {f"{stem}: {name}": points for stem, groups in read.items() for name, points in groups.items()}


def frontier_rows(groups: Groups) -> list[dict[str, Any]]:
    """The frontier of each group, one row each; rates are fractions, None where no point qualifies."""
    rows = []
    for name, points in groups.items():
        row: dict[str, Any] = {"group": name, "points": len(points)}
        for cap in CAPS:
            best = best_accuracy(points, cap)
            row[f"best_top1_at_asr_{cap:g}"] = best.top1 if best else None
            row[f"its_asr_{cap:g}"] = best.asr if best else None
        low = lowest_asr(points, 0.0)
        row |= {"lowest_asr": low.asr if low else None, "its_top1": low.top1 if low else None}
        row |= {"pareto_points": len(pareto(points)), "hypervolume": hypervolume(points) if points else None}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The frontier rows as text, in percent: accuracy @ ASR, and the lowest ASR @ its accuracy."""
    heads = ["group", "points", *(f"ASR <= {100 * cap:g} %" for cap in CAPS), "lowest ASR", "Pareto", "hypervolume"]
    cells = [heads]
    for row in rows:
        best = [_pair(row[f"best_top1_at_asr_{cap:g}"], row[f"its_asr_{cap:g}"]) for cap in CAPS]
        area = "none" if row["hypervolume"] is None else f"{row['hypervolume']:.4f}"
        low = _pair(row["lowest_asr"], row["its_top1"])
        cells.append([row["group"], str(row["points"]), *best, low, str(row["pareto_points"]), area])
    wide = [max(len(line[at]) for line in cells) for at in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in cells)


def _pair(one: float | None, other: float | None) -> str:
    return "none" if one is None or other is None else f"{100 * one:.2f} @ {100 * other:.2f}"


def remarks(groups: Groups) -> list[str]:
    """What a reader must know before trusting the table."""
    said = [NO_START, *(sentence(overlap) for overlap in overlaps(groups))]
    empty = [name for name, points in groups.items() if not points]
    if empty:
        said.append(f"Without points: {', '.join(empty)}.")
    filled = len(groups) - len(empty)
    return [*said, f"The figure shows the first {DRAWN} of {filled} groups."] if filled > DRAWN else said


def write_published(paths: list[Path], out: Path | None) -> list[str]:
    """Writes frontier.csv, results.csv and the figure into the folder; returns what to say. Raises UserError."""
    groups = read_all(paths)
    folder = out or Path(f"{paths[0].stem}-report")
    rows = frontier_rows(groups)
    kept = {name: {point.label for point in pareto(points)} for name, points in groups.items()}
    points = [
        {"group": name, "point": p.label, "top1": p.top1, "asr": p.asr, "pareto": int(p.label in kept[name])}
        for name, group in groups.items()
        for p in group
    ]
    figure = figures.frontier(panels(groups)[:DRAWN])
    said = remarks(groups)
    command = " ".join(["python -m report", *(f"--import {shlex.quote(str(path))}" for path in paths)])
    files = {
        "frontier.csv": as_csv(list(rows[0]), rows).encode(),
        "results.csv": as_csv(["group", "point", "top1", "asr", "pareto"], points).encode(),
        "frontier.png": figures.drawn(figure, "png", command),
        "frontier.pdf": figures.drawn(figure, "pdf", command),
        "notes.txt": ("\n".join(said) + "\n").encode(),
    }
    write_files(folder, files)
    return [table(rows), *(f"Note: {text}" for text in said), str(folder / "frontier.png")]


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes the files into the folder, each at once or not at all. Raises UserError if it can't be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder} ({error.strerror}); give another folder with --out") from error
