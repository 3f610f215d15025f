"""Turns a study folder into its report: figures, one table of every number, one page.

    python -m engine.report runs/demo

reads what the engine wrote (`study.json`, a folder for each run) and writes `runs/demo/report/`. It works on
unfinished studies, and the same numbers always give the same files. Names, captions and specs come from
other people: the page escapes them, and the table keeps spreadsheets from running them as formulas.
"""

import argparse
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.refusal import Refusal
from engine import figures
from engine.page import page_of
from engine.panels import curves, panels
from engine.records import Study, read_study
from engine.tables import results_csv
from engine.verdict import notes, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def frontier_figure(study: Study) -> "Figure":
    """Accuracy against attack success, also for TensorBoard: `frontier_figure(read_study(folder))`."""
    return figures.frontier(panels(study))


def write_report(study: Path) -> Path:
    """Writes `report/` inside the study folder and returns the path of its page. Raises Refusal."""
    return _write(read_study(study))


def _write(read: Study) -> Path:
    """Writes every file of the report, each at once or not at all; returns the page's path."""
    out, course = read.folder / "report", curves(read)
    out.mkdir(exist_ok=True)
    whole = frontier_figure(read)
    wide = {"frontier.png": _drawn(whole, "png"), "dynamics.png": _drawn(figures.dynamics(course), "png")}
    narrow = {
        "frontier.png": _drawn(figures.frontier(panels(read), columns=1), "png"),
        "dynamics.png": _drawn(figures.dynamics(course, columns=1), "png"),
    }
    files = {**wide, "frontier.pdf": _drawn(whole, "pdf"), "results.csv": results_csv(read).encode()}
    files["index.html"] = page_of(read, wide, narrow).encode()
    for name, content in files.items():
        _write_whole(out / name, content)
    return out / "index.html"


def _drawn(figure: "Figure", kind: str) -> bytes:
    """The figure as a file's bytes, without a date, so that equal numbers give equal files."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    return out.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
    """Writes the file so that readers see the old or the new one, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def main(given: list[str]) -> int:
    """Runs the command line; the exit code is 2 when the folder is no study."""
    parser = argparse.ArgumentParser(prog="python -m engine.report", description="Report on a study.")
    parser.add_argument("study", type=Path, help="the folder that engine/run.py wrote, such as runs/demo")
    try:
        read = read_study(parser.parse_args(given).study)
    except Refusal as error:
        print(error, file=sys.stderr)
        return 2
    page = _write(read)
    for panel in panels(read):
        print(verdict(panel).sentence)
    for remark in notes(read):
        print(f"Note: {remark}")
    print(page, page.with_name("frontier.png"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
