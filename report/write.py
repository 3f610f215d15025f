"""Writes a study's report: figures, one table of every number, one page."""

from pathlib import Path
from typing import NamedTuple

from report.exports import Judged, judge, verdict_files
from report.figures import plates
from report.imports import write_files
from report.load import Study, read_study
from report.page import Picture, page_of
from report.plots.frontier import drawn
from report.points import panels
from report.tables import as_csv, results, results_parquet
from report.verdict import sentences


class Written(NamedTuple):
    """A report on disk: its page, its figures (PNG) by name, what the verdict says, and the numbers behind it."""

    page: Path
    figures: dict[str, Path]
    sentences: list[str]
    judged: Judged


def write_report(study: Path) -> Written:
    """Writes `report/` inside the study folder. Raises UserError."""
    return write(read_study(study))


def write(read: Study) -> Written:
    """Writes every file of the report, each at once or not at all."""
    judged, table = judge(panels(read)), results(read)
    out = read.folder / "report"
    files, pictures = {"results.csv": as_csv(*table).encode()} | verdict_files(judged), list[Picture]()
    for plate in plates(read):
        figure = plate.draw(False)
        files |= {f"{plate.name}.{kind}": drawn(figure, kind, read.again) for kind in ("png", "pdf")}
        wide, narrow = files[f"{plate.name}.png"], drawn(plate.draw(True), "png", read.again)
        pictures.append(Picture(plate.name, plate.heading, plate.caption, wide, narrow))
    parquet = results_parquet(*table)
    if parquet is not None:
        files["results.parquet"] = parquet
    files["index.html"] = page_of(read, judged, pictures).encode()
    write_files(out, files)
    figures = {picture.name: out / f"{picture.name}.png" for picture in pictures}
    return Written(out / "index.html", figures, sentences(panels(read), judged.differences), judged)
