"""The open matrix on disk: index.html, complete in itself, and the same cells as matrix.json and matrix.csv."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.refusal import UserError
from report.columns.registry import KINDS
from report.costs import STAGES
from report.matrix import LEAST, Cell, Matrix, make_matrix
from report.page import filled
from report.submission import Submission, read_submission
from report.tables import as_csv
from report.write import write_files

COLUMNS = [
    *("objective", "attack", "data", "model", "differs", "kind", "column", "called", "tried", "status", "seeds"),
    *KINDS[0].columns,
    *("marks", "sentence", "commands", "pretrain_runs", "twin_runs", "clean_runs"),
    *(name for kind in KINDS[1:] for name in kind.columns),
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
        stages=STAGES,
        least=LEAST,
        again=again,
    )


def _row(cell: Cell) -> dict[str, Any]:
    """The cell under COLUMNS, without what is of other kinds; rates are fractions in [0, 1], None where there is none."""
    return {
        **cell.row._asdict(),
        "kind": cell.column.kind,
        "column": cell.column.what,
        "called": list(cell.column.names),
        "tried": cell.tried,
        "status": cell.said.status,
        "seeds": cell.seeds,
        **cell.said.numbers,
        "marks": cell.marks,
        "sentence": cell.said.sentence,
        "costs": cell.costs,
        "commands": cell.commands,
        "studies": [str(path) for path in cell.studies],
        **{f"{stage}_runs": names for stage, names in cell.runs.items()},
    }


def _flat(value: Any) -> Any:
    """The value as one cell of a table."""
    return "; ".join(map(str, value)) if isinstance(value, list) else value
