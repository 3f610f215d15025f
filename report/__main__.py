"""The report's command line: from one or several studies to a page, a comparison or Markdown.

    python -m report runs/demo                                   # figures, tables and a page in runs/demo/report/
    python -m report runs/demo runs/other                        # the two compared, in runs/demo/report/compare-other/
    python -m report runs/mini-* --markdown docs/results.md      # one Markdown page, its figures in docs/results/
    python -m report --pack runs/demo demo.tar.xz                # the study's records and journals in one small file
    python -m report --matrix runs/* --out docs/matrix           # attacks and objectives by cleaners, detectors, audits
    python -m report --import published.json --out there         # the frontier of published points

It reads what the engine wrote (`study.json`, a folder for each run), works on unfinished studies, and the same numbers give
the same files. A packed study does wherever a folder does. Names and captions come from other people: the page escapes
them, the table keeps spreadsheets from running them as formulas.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.refusal import UserError
from report.compare import write_comparison
from report.markdown import write_markdown
from report.matrix_page import write_matrix
from report.published import write_published
from report.submission import write_packed
from report.write import write_report

NO_PARQUET = "results.parquet is not written: it needs pyarrow, which `pip install -e .[parquet]` brings."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m report", description="Report on studies or on published points.")
    parser.add_argument(
        "studies", metavar="STUDY", type=Path, nargs="*",
        help="a folder that engine/run.py wrote, such as runs/demo, or a packed study; several are compared",
    )  # fmt: skip
    parser.add_argument(
        "--pack", metavar=("STUDY", "FILE.tar.xz"), type=Path, nargs=2,
        help="pack a finished study's records and journals, without weights, into a file that the report reads",
    )  # fmt: skip
    parser.add_argument(
        "--matrix", action="store_true",
        help="write the matrix of the studies into --out: what cleans, finds or rejects each attack on each pre-training",
    )  # fmt: skip
    parser.add_argument(
        "--markdown", metavar="FILE.md", type=Path,
        help="write the studies' sections of this Markdown page instead, figures in the folder FILE/; other sections stay",
    )  # fmt: skip
    parser.add_argument(
        "--import", dest="published", metavar="FILE", type=Path, action="append", default=[],
        help='a published sweep: {"group": [[asr, ...], [accuracy, ...]]} in JSON, fractions; may be given again',
    )  # fmt: skip
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="where to write a comparison, a matrix, or a report on published points or on a packed study",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; the exit code is 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    try:
        print("\n".join(_run(options)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> list[str]:
    """Writes what was asked for; returns the lines to print. Raises UserError."""
    studies: list[Path] = options.studies
    out: Path | None = options.out
    tasks = {
        "--pack": options.pack,
        "--import": options.published,
        "--matrix": options.matrix,
        "--markdown": options.markdown,
    }
    asked = [name for name, value in tasks.items() if value]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} were given together, expected one of them; run them one after the other")
    if options.pack:
        if studies or out is not None:
            raise UserError("--pack takes one study and one file, and nothing beside; leave the rest out")
        return [write_packed(*options.pack)]
    if options.published and not studies:
        return write_published(options.published, out)
    if options.published or not studies:
        raise UserError("expected a study, such as runs/demo, or published points by --import FILE; give one")
    if options.matrix:
        if out is None:
            raise UserError("--matrix was given without --out, expected a folder to write to, such as docs/matrix; give one")
        return write_matrix(studies, out)
    return _report(studies, options.markdown, out)


def _report(studies: list[Path], markdown: Path | None, out: Path | None) -> list[str]:
    """Writes the report on one study, or on several; returns the lines to print. Raises UserError."""
    if markdown is not None:
        if out is not None:
            raise UserError(f"--out {out} was given with --markdown {markdown}, which says where to write; leave --out out")
        return [f"{markdown}, with {write_markdown(studies, markdown)} figures"]
    if len(studies) > 1:
        return write_comparison(studies, out)
    if out is not None and not studies[0].is_file():
        raise UserError(f"--out {out} was given with one study, whose report lies in the study's own folder; leave it out")
    page, drawn, report = write_report(studies[0], out)
    remarks = [*report.notes, *report.judged.notes]
    remarks += [] if page.with_name("results.parquet").is_file() else [NO_PARQUET]
    lines = [*report.judged.sentences, *(f"Note: {remark}" for remark in remarks)]
    return [*lines, str(page), *map(str, list(drawn.values())[:1])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
