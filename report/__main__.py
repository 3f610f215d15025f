"""Turns a study folder into its report: figures, one table of every number, one page.

    python -m report runs/demo
    python -m report runs/demo runs/other
    python -m report --import published.json --out there

reads what the engine wrote (`study.json`, a folder for each run) and writes `runs/demo/report/`. It works on
unfinished studies, and the same numbers always give the same files. Names, captions and specs come from
other people: the page escapes them, and the table keeps spreadsheets from running them as formulas.
"""

import argparse
import sys
from pathlib import Path

from data.refusal import UserError
from report.compare import write_comparison
from report.imports import write_published
from report.load import read_study
from report.verdict import notes
from report.write import write


def missing(out: Path) -> list[str]:
    """What was not written, as notes."""
    told = "results.parquet is not written: it needs pyarrow, which `pip install -e .[parquet]` brings."
    return [] if (out / "results.parquet").is_file() else [told]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m report", description="Report on a study or on published points.")
    parser.add_argument(
        "study", type=Path, nargs="*", help="the folder that engine/run.py wrote, such as runs/demo; of several: compared"
    )
    parser.add_argument(
        "--import", dest="published", metavar="FILE", type=Path, action="append", default=[],
        help='a published sweep: {"group": [[asr, ...], [accuracy, ...]]} in JSON, fractions; may be given again',
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where to write a comparison or a report on published points"
    )
    return parser


def main(given: list[str]) -> int:
    """Runs the command line; the exit code is 2 for what the user can put right."""
    asked = _parser().parse_args(given)
    try:
        print("\n".join(_carried_out(asked.study, asked.published, asked.out)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _carried_out(studies: list[Path], published: list[Path], out: Path | None) -> list[str]:
    """Writes what was asked for; returns what to say. Raises UserError."""
    if published and not studies:
        return write_published(published, out)
    if published or not studies:
        raise UserError("expected a study's folder, such as runs/demo, or published points by --import FILE; give one")
    if len(studies) > 1:
        return write_comparison(studies, out)
    if out is not None:
        raise UserError(f"--out {out} was given with one study, whose report lies in the study's own folder; leave it out")
    read = read_study(studies[0])
    page, _, said, judged = write(read)
    said = said + [f"Note: {remark}" for remark in [*notes(read), *judged.notes, *missing(page.parent)]]
    return [*said, str(page), str(page.with_name("frontier.png"))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
