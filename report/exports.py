"""The verdict's numbers for other programs and for paper: JSON, CSV, LaTeX; and in words for the page."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from measures.frontier import CAP
from measures.interval import Interval
from report.difference import Difference, differences, sentence
from report.scores import Group, Mean, Number, Score, lacking, over_seeds, scores
from report.tables import as_csv
from report.values import Panel

COLUMNS = [
    *("way", "cleaner", "seed", "number", "value", "low", "high", "interval", "seeds_with", "seeds"),
    *("top1", "asr", "run", "epoch"),
]
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}", "]": "{]}"}
SPECIAL |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
SPECIAL |= {"≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$"}
WORDS = {
    "best_top1_at_asr_": "best top-1 at ASR ≤ {} %",
    "relative_drop_at_asr_": "relative drop at ASR ≤ {} %",
    "drop_at_asr_": "drop in points at ASR ≤ {} %",
}


class Judged(NamedTuple):
    """Everything that was computed for the verdict, once."""

    scores: list[Score]
    means: dict[Group, dict[str, Mean]]
    differences: list[Difference]
    notes: list[str]


def judge(panels: Sequence[Panel]) -> Judged:
    """The verdict's numbers of these panels."""
    found = scores(panels)
    return Judged(found, over_seeds(found), differences(found), lacking(found))


def verdict_files(judged: Judged) -> dict[str, bytes]:
    """The verdict's files, by name."""
    texts = {"verdict.json": verdict_json(judged), "verdict.csv": verdict_csv(judged), "verdict.tex": verdict_tex(judged)}
    return {name: content.encode() for name, content in texts.items()}


def verdict_json(judged: Judged) -> str:
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
        over = {name: _mean(mean) for name, mean in means.items()}
        groups.append({"way": way, "cleaner": cleaner, "seeds": seeds, "over_seeds": over})
    apart = [
        {
            "cleaner": one.cleaner,
            "ways": list(one.ways),
            "means": [_mean(mean) for mean in one.means],
            "difference": one.value,
            "interval": one.interval,
            "p": one.test.p if one.test else None,
            "smallest_possible_p": one.test.smallest if one.test else None,
            "exact": one.test.exact if one.test else None,
            "sentence": sentence(one),
        }
        for one in judged.differences
    ]
    content = {"groups": groups, "differences": apart, "notes": judged.notes}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _number(number: Number) -> dict[str, Any]:
    """The number as JSON; the point that it is of, if it is of one."""
    out: dict[str, Any] = {"value": number.value}
    if number.interval:
        out["wilson"] = list(number.interval)
    if number.at:
        mark = number.at.label
        out |= {"top1": number.at.top1, "asr": number.at.asr, "run": mark.run, "epoch": mark.epoch}
    return out


def _mean(mean: Mean) -> dict[str, Any]:
    between = list(mean.interval) if mean.interval else None
    return {"mean": mean.value, "bootstrap": between, "seeds_with": mean.known, "seeds": mean.of}


def verdict_csv(judged: Judged) -> str:
    """All numbers, one a row; `seed` is "all" for means over seeds, `value` is empty where no point qualifies."""
    rows: list[dict[str, Any]] = []
    for score in judged.scores:
        way, cleaner = score.group
        for name, number in score.numbers.items():
            told = _number(number) | _ends(number.interval, "Wilson")
            seed = "" if score.seed is None else score.seed
            rows.append(told | {"way": way, "cleaner": cleaner, "seed": seed, "number": name})
    for (way, cleaner), means in judged.means.items():
        for name, mean in means.items():
            counted = {"value": mean.value, "seeds_with": mean.known, "seeds": mean.of}
            told = {"way": way, "cleaner": cleaner, "seed": "all", "number": name}
            rows.append(told | counted | _ends(mean.interval, "bootstrap"))
    return as_csv(COLUMNS, rows)


def _ends(interval: Interval | None, kind: str) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "interval": kind} if interval else {}


def verdict_tex(judged: Judged) -> str:
    """The means as a table for LaTeX with booktabs, in percent; "none" and the number of seeds are never left out."""
    columns = [f"best_top1_at_asr_{CAP:g}", f"relative_drop_at_asr_{CAP:g}", "lowest_asr_at_0.95_of_start", "hypervolume"]
    heads = ["Pre-training", "Cleaner", *(words(name) for name in columns)]
    lines = [
        r"% needs \usepackage{booktabs}; means over seeds, 95 % bootstrap intervals, in brackets the seeds that qualify",
        rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(escape(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    for (way, cleaner), means in judged.means.items():
        cells = [way, cleaner]
        for name in columns:
            mean = means.get(name)
            cells.append(f"{text(name, mean)} ({mean.known}/{mean.of})" if mean else "not measured")
        lines.append(" & ".join(escape(one) for one in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape(given: str) -> str:
    """The text as LaTeX prints it: on one line, special signs escaped (a bracket at a row's head would be an argument)."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(given.split()))


def words(name: str) -> str:
    """A number's name as people read it."""
    for head, said in WORDS.items():
        if name.startswith(head):
            return said.format(f"{100 * float(name.removeprefix(head)):g}")
    if name.startswith("lowest_asr_at_"):
        share = float(name.removeprefix("lowest_asr_at_").removesuffix("_of_start"))
        return f"lowest ASR at top-1 ≥ {100 * share:g} % of start"
    if name.startswith("chosen_by_"):
        rule, what = name.removeprefix("chosen_by_").rsplit("_", 1)
        told = {"top1": "top-1", "asr": "ASR", "gap": "top-1 short of the oracle", "excess": f"ASR above {100 * CAP:g} %"}
        return f"chosen by {rule}: {told[what]}"
    carrying = f"points at ASR ≤ {100 * CAP:g} % and top-1 ≥ 95 % of start"
    return {"carrying_points": carrying, "points": "points"}.get(name, name)


def text(name: str, mean: Mean) -> str:
    """The mean with its interval, in percent where it is a rate; "none" where no seed has it."""
    if mean.value is None:
        return "none"
    digits, unit, scale = (1, " %", 100)
    if name in ("points", "carrying_points"):
        digits, unit, scale = (0 if mean.value == int(mean.value) else 1), "", 1
    elif name == "hypervolume":
        digits, unit, scale = 4, "", 1
    elif name.startswith("drop") or name.endswith(("_gap", "_excess")):
        unit = ""  # points
    between = f" [{scale * mean.interval.low:.{digits}f}, {scale * mean.interval.high:.{digits}f}]" if mean.interval else ""
    return f"{scale * mean.value:.{digits}f}{unit}{between}"


def page_table(judged: Judged) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of the page's table: a number in words, and for each group its mean and its seeds."""
    names = list(dict.fromkeys(name for means in judged.means.values() for name in means))
    rows = []
    for name in names:
        cells = []
        for means in judged.means.values():
            mean = means.get(name)
            cells.append((text(name, mean), f"{mean.known} of {mean.of} seeds") if mean else ("not measured", ""))
        rows.append((words(name), cells))
    return rows
