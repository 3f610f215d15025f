"""The numbers of a study as tables for other programs."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from report.load import KEYS, RATES, Study, flat


def results(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """All evaluations: the columns of the table, and its rows."""
    rows = [row for record in study.records for row in record.evaluations]
    swept = {key for record in study.records for key, _ in flat(record.run.swept)} - {*KEYS, *RATES}
    others = {key for row in rows for key in row} - {*KEYS, *RATES} - swept
    columns = [*KEYS, *RATES, *sorted(others), *sorted(swept)]
    return columns, rows


def as_csv(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows' columns as CSV with a line of heads; what a row lacks is an empty cell, and text that a spreadsheet would
    run as a formula starts with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(column) for column in columns])
    writer.writerows([cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def cell(value: Any) -> Any:
    """A cell of results.csv: numbers as they are, text made harmless."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def results_parquet(columns: list[str], rows: list[dict[str, Any]]) -> bytes | None:
    """The same table as a Parquet file; None where pyarrow is not installed (`pip install -e .[parquet]`)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    values = {column: [row.get(column) for row in rows] for column in columns}
    mixed = {c for c, v in values.items() if any(isinstance(x, str) for x in v)}
    clean = {c: [None if x is None else str(x) for x in v] if c in mixed else v for c, v in values.items()}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(clean), sink)
    return bytes(sink.getvalue().to_pybytes())
