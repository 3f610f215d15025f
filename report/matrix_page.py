"""The open matrix on disk: index.html, complete in itself, and the same cells as matrix.json and matrix.csv."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.refusal import UserError
from report.costs import STAGES
from report.headline import MEANINGS, asr_text
from report.matrix import LEAST, Cell, Matrix, make_matrix
from report.page import filled
from report.points import percent
from report.scores import BEST, LOWEST, Number, Score
from report.submission import Submission, read_submission
from report.tables import as_csv
from report.verdict import mean_point, where
from report.write import write_files

SEED_HEADS = ("seed", "start: top-1 at ASR", BEST.label, LOWEST.label)
COLUMNS = [
    *("objective", "attack", "data", "model", "differs", "kind", "column", "called", "tried", "status", "seeds"),
    *("seeds_with", "best_top1", "low", "high", "lowest_asr", "start_top1", "start_asr", "twin_top1", "twin_asr", "marks"),
    *("sentence", "commands", "pretrain_runs", "twin_runs", "clean_runs"),
]


def write_matrix(paths: Sequence[Path], out: Path) -> list[str]:
    """Writes the matrix of these studies into a folder; returns the lines to print. Raises UserError, which names all files
    of all studies that are not as they were written, and then nothing is written."""
    given, faults = list[Submission](), list[str]()
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"of {', '.join(map(str, paths))}, two are one; name each study once")
    for path in paths:
        try:
            given.append(read_submission(path))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join([*faults, f"{out} is not written; leave these studies out, or put them right"]))
    matrix = make_matrix(given)
    again = f"python -m report --matrix {shlex.join(map(str, paths))} --out {shlex.quote(str(out))}"
    rows = [_row(cell) for cell in matrix.cells]
    files = {
        "index.html": _page(matrix, again).encode(),
        "matrix.json": (json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        "matrix.csv": as_csv(COLUMNS, [{name: _flat(value) for name, value in row.items()} for row in rows]).encode(),
    }
    write_files(out, files)
    return [f"{out / 'index.html'}, with {len(rows)} cells from {len(given)} studies"]


def _page(matrix: Matrix, again: str) -> str:
    return filled(
        "matrix.html.j2",
        rows=matrix.rows,
        columns=matrix.columns,
        cells=matrix.cells,
        submissions=matrix.submissions,
        at=matrix.at,
        best=_best,
        seeds=lambda cell: [_seed(score) for score in cell.scores],
        seed_heads=SEED_HEADS,
        stages=STAGES,
        meanings=MEANINGS,
        least=LEAST,
        again=again,
    )


def _best(cell: Cell) -> str:
    """The cell's number with its interval, and of how many seeds."""
    mean = cell.means.get(BEST.name)
    if mean is None:
        return "not measured"
    return f"{mean.text} in {mean.known} of {mean.of} seed{'s' * (mean.of > 1)}"


def _seed(score: Score) -> list[str]:
    """The cells of one seed under SEED_HEADS."""
    start = "not measured" if score.start is None else f"{percent(score.start.top1)} at {percent(score.start.asr)}"
    return ["" if score.seed is None else str(score.seed), start, *(_at(score.numbers.get(m.name)) for m in (BEST, LOWEST))]


def _at(number: Number | None) -> str:
    if number is None or number.at is None:
        return "none"
    return f"{percent(number.at.top1)} at ASR {asr_text(number.at)}, {where(number.at)}, {number.at.label.run}"


def _row(cell: Cell) -> dict[str, Any]:
    """The cell under COLUMNS; rates are fractions in [0, 1], None where there is none."""
    best, low = cell.means.get(BEST.name), cell.means.get(LOWEST.name)
    start, twin = mean_point(cell.panel.starts), mean_point(cell.panel.twins)
    interval = best.interval if best else None
    return {
        **cell.row._asdict(),
        "kind": cell.column.kind,
        "column": cell.column.what,
        "called": list(cell.column.names),
        "tried": cell.searched,
        "status": cell.verdict.status,
        "seeds": cell.seeds,
        "seeds_with": best.known if best else 0,
        "best_top1": best.value if best else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "lowest_asr": low.value if low else None,
        "start_top1": start.top1 if start else None,
        "start_asr": start.asr if start else None,
        "twin_top1": twin.top1 if twin else None,
        "twin_asr": twin.asr if twin else None,
        "marks": cell.marks,
        "sentence": cell.verdict.sentence,
        "costs": cell.costs,
        "commands": cell.commands,
        "studies": [str(path) for path in cell.studies],
        **{f"{stage}_runs": names for stage, names in cell.runs.items()},
    }


def _flat(value: Any) -> Any:
    """The value as one cell of a table."""
    return "; ".join(map(str, value)) if isinstance(value, list) else value
