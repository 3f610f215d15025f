"""Reports on disk: the files of a study's report, each written at once or not at all."""

from pathlib import Path
from typing import NamedTuple

from data.refusal import UserError
from records.json_file import write_whole
from report.audits import audit_table
from report.figures import figures
from report.left_out import HEADS as LEFT_OUT
from report.page import Picture, page_of
from report.persistence import table as probe_table
from report.plots.style import render, svg
from report.submission import open_study, report_folder
from report.suspects import scored_table
from report.tables import as_csv, results_parquet, verdict_files
from report.test_time import detection_table
from report.verdict import Report, make_report


class Written(NamedTuple):
    """A report on disk: its page, its figures (PNG) by name, and what they were written from."""

    page: Path
    figures: dict[str, Path]
    report: Report


def write_report(path: Path, into: Path | None = None) -> Written:
    """Reads a study, in its folder or packed, and writes its report there or into another folder. Raises UserError."""
    report = make_report(open_study(path))
    study, table = report.study, report.study.results
    out = into or report_folder(path)
    files, pictures = {"results.csv": as_csv(*table).encode()} | verdict_files(report.judged), list[Picture]()
    if report.audits:
        files["audits.csv"] = as_csv(*audit_table(report.audits)).encode()
    if report.test_time:
        files["test-time.csv"] = as_csv(*detection_table(report.test_time)).encode()
    for figure in figures(report):
        drawing = figure.draw(False)
        files |= {f"{figure.name}.{kind}": render(drawing, kind, study.again) for kind in ("png", "pdf")}
        pictures.append(Picture(figure.name, figure.heading, figure.caption, svg(drawing), svg(figure.draw(True))))
    if report.scored:
        files["detection.csv"] = as_csv(*scored_table(report.scored)).encode()
    if report.probed:
        files["persistence.csv"] = as_csv(*probe_table(report.probed)).encode()
    parquet = results_parquet(*table)
    if parquet is not None:
        files["results.parquet"] = parquet
    if report.left_out:
        files["left_out.csv"] = as_csv(list(LEFT_OUT), [row.plain for row in report.left_out]).encode()
    files["index.html"] = page_of(report, pictures).encode()
    write_files(out, files)
    return Written(out / "index.html", {picture.name: out / f"{picture.name}.png" for picture in pictures}, report)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes the files into the folder, each at once or not at all. Raises UserError if it can't be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder} ({error.strerror}); give another folder with --out") from error
