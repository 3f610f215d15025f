"""The numbers of a study as tables for other programs."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from engine.records import KEYS, RATES, Study, evaluations, flat


def results_csv(study: Study) -> str:
    """All evaluations as one table; text that a spreadsheet would run as a formula starts with '."""
    rows = [row for record in study.records for row in evaluations(record)]
    swept = {key for record in study.records for key, _ in flat(record.run.swept)} - {*KEYS, *RATES}
    others = {key for row in rows for key in row} - {*KEYS, *RATES} - swept
    columns = [*KEYS, *RATES, *sorted(others), *sorted(swept)]
    return as_csv(columns, rows)


def as_csv(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows' columns as CSV with a line of heads; what a row lacks is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(column) for column in columns])
    writer.writerows([cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def cell(value: Any) -> Any:
    """A cell of results.csv: numbers as they are, text made harmless."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
