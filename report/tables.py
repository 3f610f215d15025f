"""A study's numbers as files for other programs and for paper: CSV, Parquet, JSON, LaTeX; and as rows for the page."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from measures.frontier import CAP
from measures.interval import Interval
from report.controls import Control
from report.differences import Comparison, Difference
from report.ground import at_chance
from report.headline import gate_of, rates
from report.scores import BEST, HEADLINES, HYPERVOLUME, LOWEST, Group, Mean, Number, relative_drop
from report.seeds import at_chance_in, remark
from report.verdict import Judgement

COLUMNS = [
    *("way", "cleaner", "seed", "number", "value", "low", "high", "interval", "seeds_with", "seeds"),
    *("at_chance", "top1", "asr", "run", "epoch"),
]
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}", "]": "{]}"}
SPECIAL |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
SPECIAL |= {"≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$"}


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


def verdict_files(judged: Judgement) -> dict[str, bytes]:
    """The verdict's files, by name."""
    texts = {"verdict.json": verdict_json(judged), "verdict.csv": verdict_csv(judged), "verdict.tex": verdict_tex(judged)}
    return {name: content.encode() for name, content in texts.items()}


def verdict_json(judged: Judgement) -> str:
    """All numbers, nested: groups, their seeds and their means; differences between ways. Rates are fractions in [0, 1]."""
    groups = []
    for (way, cleaner), means in judged.means.items():
        members = [score for score in judged.scores if score.group == (way, cleaner)]
        seeds = [
            {
                "seed": score.seed,
                "start": {"top1": score.start.top1, "asr": score.start.asr} if score.start else None,
                "numbers": {name: _number(number) for name, number in score.numbers.items()},
            }
            for score in members
        ]
        over = {name: _mean(mean) | _lost(judged, mean, (way, cleaner)) for name, mean in means.items()}
        control = next((score.control for score in members), None)
        groups.append({"way": way, "cleaner": cleaner, "control": control, "seeds": seeds, "over_seeds": over})
    apart = [_difference(one) | {"sentence": one.sentence} for one in judged.differences]
    verdicts = [
        {"way": panel.title, "status": verdict.status, "sentence": verdict.sentence, "attack": gate_of(panel)._asdict()}
        for panel, verdict in zip(judged.panels, judged.verdicts, strict=True)
    ]
    rules = [_difference(one) for one in judged.rules]
    content = {"verdicts": verdicts, "groups": groups, "differences": apart, "by_rule": rules}
    content |= {"controls": [_control(one) for one in judged.controls], "notes": judged.notes}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _difference(one: Difference) -> dict[str, Any]:
    """A difference as JSON; `counted_at_0` is the comparison in which seeds without the number count as 0, where some do."""
    out = {
        "cleaner": one.cleaner,
        "ways": list(one.ways),
        "number": one.metric.name,
        "means": [_mean(mean) for mean in one.means],
        **_comparison(one.compared),
    }
    return out | ({"counted_at_0": _comparison(one.counted)} if one.counted else {})


def _comparison(found: Comparison | None) -> dict[str, Any]:
    return {
        "difference": found.value if found else None,
        "interval": found.interval if found else None,
        "p": found.test.p if found else None,
        "p_holm": found.adjusted if found else None,
        "cleaners": found.tests if found else None,
        "smallest_possible_p": found.test.smallest if found else None,
        "exact": found.test.exact if found else None,
        "detectable": found.detectable if found else None,
    }


def _control(one: Control) -> dict[str, Any]:
    """A cleaner beside its controls, as JSON; accuracies are fractions."""
    way, cleaner = one.group
    above = None if one.above is None else _mean(one.above) | {"interval": one.interval}
    cost, beside = (None if mean is None else _mean(mean) for mean in (one.cost, one.beside))
    told = {"way": way, "cleaner": cleaner, "above_scratch": above, "thrown_away": one.thrown}
    return {**told, "twin_cost": cost, "cost_beside_twin": beside}


def _number(number: Number) -> dict[str, Any]:
    """The number as JSON; the point that it is of, if it is of difference."""
    out: dict[str, Any] = {"value": number.value}
    if number.interval:
        out["wilson"] = list(number.interval)
    if number.at:
        info = number.at.label
        lost = int(at_chance(rates(number.at)))
        out |= {"at_chance": lost, "top1": number.at.top1, "asr": number.at.asr, "run": info.run, "epoch": info.epoch}
    return out


def _lost(judged: Judgement, mean: Mean, group: Group) -> dict[str, int]:
    """In how many seeds the number is of a model that is at chance."""
    return {"at_chance": at_chance_in(judged.scores, mean.metric, group)}


def _mean(mean: Mean) -> dict[str, Any]:
    between = list(mean.interval) if mean.interval else None
    return {"mean": mean.value, "bootstrap": between, "seeds_with": mean.known, "seeds": mean.of}


def verdict_csv(judged: Judgement) -> str:
    """All numbers, one a row; `seed` is "all" for means over seeds, `value` is empty where no point qualifies; `at_chance`
    counts the models at chance, of which a number may be."""
    rows: list[dict[str, Any]] = []
    for score in judged.scores:
        way, cleaner = score.group
        for name, number in score.numbers.items():
            cells = _number(number) | _ends(number.interval, "Wilson")
            seed = "" if score.seed is None else score.seed
            rows.append(cells | {"way": way, "cleaner": cleaner, "seed": seed, "number": name})
    for (way, cleaner), means in judged.means.items():
        for name, mean in means.items():
            counted = {"value": mean.value, "seeds_with": mean.known, "seeds": mean.of}
            counted |= _lost(judged, mean, (way, cleaner))
            cells = {"way": way, "cleaner": cleaner, "seed": "all", "number": name}
            rows.append(cells | counted | _ends(mean.interval, "bootstrap"))
    return as_csv(COLUMNS, rows)


def _ends(interval: Interval | None, kind: str) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "interval": kind} if interval else {}


def verdict_tex(judged: Judgement) -> str:
    """The means as a table for LaTeX with booktabs, in percent; "none" and the number of seeds are never left out."""
    columns = [BEST, relative_drop(CAP), LOWEST, HYPERVOLUME]
    heads = ["Pre-training", "Cleaner", *(metric.label for metric in columns)]
    lines = [
        r"% needs \usepackage{booktabs}; means over seeds, 95 % bootstrap intervals, in brackets the seeds that qualify",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(escape(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    for (way, cleaner), means in judged.means.items():
        cells = [way, cleaner]
        for metric in columns:
            mean = means.get(metric.name)
            chance = f", {lost} at chance" if (lost := at_chance_in(judged.scores, metric, (way, cleaner))) else ""
            cells.append(f"{mean.text} ({mean.known}/{mean.of}{chance})" if mean else "not measured")
        lines.append(" & ".join(escape(text) for text in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """The text as LaTeX prints it: on one line, special signs escaped (a bracket at a row's head would be an argument)."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def seeds_table(judged: Judgement) -> tuple[list[str], list[tuple[Group, list[tuple[str, str]]]]]:
    """The page's table over seeds: its heads, and for each group a cell for each: a mean, of how many seeds if some lack it,
    and how many of these are at chance."""
    several = any(mean.of > 1 for means in judged.means.values() for mean in means.values())
    rows = []
    for group, means in judged.means.items():
        cells = [_cell(means.get(metric.name), at_chance_in(judged.scores, metric, group)) for metric in HEADLINES]
        rows.append((group, [*([(str(means[BEST.name].of), "")] if several else []), *cells]))
    return [*(["seeds"] if several else []), *(metric.label for metric in HEADLINES)], rows


def _cell(mean: Mean | None, lost: int) -> tuple[str, str]:
    return ("not measured", "") if mean is None else (mean.text, remark(mean, lost))


def all_numbers(judged: Judgement) -> list[tuple[Group, list[tuple[str, str, str]]]]:
    """Every number of each group: in words, its mean, its seeds."""
    return [
        (
            group,
            [(mean.metric.label, *_cell(mean, at_chance_in(judged.scores, mean.metric, group))) for mean in means.values()],
        )
        for group, means in judged.means.items()
    ]
