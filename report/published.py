"""The report on published sweeps: files of one JSON object, of each group `[attack success rates, accuracies]` or nothing.

Such a file holds points alone: no start, no rates, no seeds. What it does not hold is not guessed here.
"""

import json
import shlex
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from data.refusal import UserError
from measures.frontier import CAPS, FrontierPoint, best_accuracy, hypervolume, lowest_asr, pareto
from report.page import filled
from report.plots.frontier import frontier
from report.plots.style import render, svg
from report.points import Panel, PointInfo
from report.scores import HYPERVOLUME, best_top1
from report.tables import as_csv
from report.write import write_files

LARGEST = 64 * 2**20  # bytes of a file
MOST = 1_000  # groups of a file
PARTLY = 5  # pairs of groups that are named for sharing some points
DRAWN = 60  # groups in the figure; more do not fit a picture
Groups = dict[str, list[FrontierPoint[int]]]  # by name; the label is the place in the list
FORM = 'expected one JSON object such as {"group": [[asr, ...], [accuracy, ...]], "empty": []} with fractions in [0, 1]'

NO_START = (
    "The file holds points alone: no start's accuracy, so no accuracy floors and no drops; no learning rates, seeds, epochs."
)


class Overlap(NamedTuple):
    """How many equal points two groups of `sizes` points share."""

    names: tuple[str, str]
    sizes: tuple[int, int]
    shared: int

    @property
    def whole(self) -> bool:
        """Whether one of the two lies in the other."""
        return self.shared in self.sizes

    @property
    def sentence(self) -> str:
        """The overlap as a warning."""
        (first, second), (size, rest), shared = self
        if shared == size == rest:
            return f"{first} and {second} hold the same points, {shared}; count them once."
        for small, large, whole in ((first, second, size), (second, first, rest)):
            if shared == whole:
                return f"{small} is a subset of {large}: all its points, {shared}, are also there; count them once."
        return f"{first} and {second} share identical points: {shared} (of {size} and {rest})."


def read_published(path: Path) -> Groups:
    """The groups of the file, in its order. Raises UserError for anything else than FORM."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST // 2**20} MiB; {FORM}; split it into several files")
        text = path.read_text("utf-8-sig")
        whole = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of published points") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") if str(path) not in str(error) else error from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({str(error)[:200]}); {FORM}; take the file as it was published") from error
    if not isinstance(whole, dict) or not whole:
        raise UserError(f"{path} holds {_kind(whole)}; {FORM}; name each group")
    if len(whole) > MOST:
        raise UserError(f"{path} holds {len(whole)} groups, expected at most {MOST}; split it into several files")
    for name in whole:
        if not name.isprintable():
            raise UserError(f"{path} names a group {ascii(name)[:80]}, expected a name that can be printed; rename it")
    return {name: _points(f"{path}, group {name!r}", value) for name, value in whole.items()}


def _no_number(word: str) -> NoReturn:
    raise UserError(f"holds {word}, expected finite numbers in [0, 1]; leave such points out")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of the pairs. Raises UserError for a key given twice, of which json would keep the last."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise UserError(f"names {twice[0]!r} twice, expected each group once; rename one of them")
    return dict(pairs)


def _points(where: str, value: Any) -> list[FrontierPoint[int]]:
    """The points of one group. Raises UserError."""
    if value == []:
        return []
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, list) for part in value):
        raise UserError(f"{where} is {_kind(value)}; expected [asr list, accuracy list] or []; correct that group")
    asrs, tops = value
    if len(asrs) != len(tops):
        raise UserError(
            f"{where} has {len(asrs)} ASR and {len(tops)} accuracies, expected as many of each; complete the lists"
        )
    for name, numbers in (("ASR", asrs), ("accuracy", tops)):
        for at, number in enumerate(numbers):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
                shown = json.dumps(number, ensure_ascii=True)[:40]
                raise UserError(
                    f"{where} has the {name} {shown} at place {at}, expected a fraction in [0, 1]; divide percents by 100"
                )
    return [FrontierPoint(float(asr), float(top1), at) for at, (asr, top1) in enumerate(zip(asrs, tops, strict=True))]


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    words = {
        dict: "an object",
        list: f"a list of {len(value) if isinstance(value, list) else 0}",
        str: "text",
        bool: "a truth value",
    }
    return words.get(type(value), "null" if value is None else "a number")


def overlaps(groups: Groups) -> list[Overlap]:
    """The pairs of groups that share equal points, a point counted as often as both have it."""
    counts = {name: Counter((p.asr, p.top1) for p in points) for name, points in groups.items()}
    holders: dict[tuple[float, float], list[str]] = defaultdict(list)
    for name, points in counts.items():
        for point in points:
            holders[point].append(name)
    shared: Counter[tuple[str, str]] = Counter()
    for point, names in holders.items():
        for first, second in combinations(names, 2):
            shared[first, second] += min(counts[first][point], counts[second][point])
    return [Overlap(pair, (len(groups[pair[0]]), len(groups[pair[1]])), count) for pair, count in shared.items()]


def panels(groups: Groups) -> list[Panel]:
    """A panel for each group that has points; nothing is known of starts, rates and runs."""
    return [
        Panel(
            name, starts=[], twins=[], points=[_unknown(name, point) for point in points], finished=1, total=1, heading=name
        )
        for name, points in groups.items()
        if points
    ]


def _unknown(group: str, point: FrontierPoint[int]) -> FrontierPoint[PointInfo]:
    """The point of a group as the figure takes it."""
    return FrontierPoint(point.asr, point.top1, PointInfo(group, 0, None, "published", None))


def read_all(paths: list[Path]) -> Groups:
    """The groups of all files; of several files, each group's name begins with its file's. Raises UserError."""
    if len({path.stem for path in paths}) < len(paths):
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"two of {names} have one name, expected different ones to tell their groups apart; rename a file")
    read = {path.stem: read_published(path) for path in paths}
    if len(read) == 1:
        return next(iter(read.values()))
    return {f"{stem}: {name}": points for stem, groups in read.items() for name, points in groups.items()}


def frontier_rows(groups: Groups) -> list[dict[str, Any]]:
    """The frontier of each group, one row each; rates are fractions, None where no point qualifies."""
    rows = []
    for name, points in groups.items():
        row: dict[str, Any] = {"group": name, "points": len(points)}
        for cap in CAPS:
            best = best_accuracy(points, cap)
            row[best_top1(cap).name] = best.top1 if best else None
            row[f"its_asr_{cap:g}"] = best.asr if best else None
        low = lowest_asr(points, 0.0)
        row |= {"lowest_asr": low.asr if low else None, "its_top1": low.top1 if low else None}
        row |= {"pareto_points": len(pareto(points)), HYPERVOLUME.name: hypervolume(points) if points else None}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The frontier rows in words under a row of heads, in percent: accuracy @ ASR, and the lowest ASR @ its accuracy."""
    heads = ["group", "points", *(f"ASR <= {100 * cap:g} %" for cap in CAPS), "lowest ASR", "Pareto", "hypervolume"]
    cells = [heads]
    for row in rows:
        best = [_pair(row[best_top1(cap).name], row[f"its_asr_{cap:g}"]) for cap in CAPS]
        area = "none" if row[HYPERVOLUME.name] is None else f"{row[HYPERVOLUME.name]:.4f}"
        low = _pair(row["lowest_asr"], row["its_top1"])
        cells.append([row["group"], str(row["points"]), *best, low, str(row["pareto_points"]), area])
    return cells


def in_lines(cells: list[list[str]]) -> str:
    """The table for a terminal, its columns one below the other."""
    wide = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in cells)


def _pair(rate: float | None, at: float | None) -> str:
    return "none" if rate is None or at is None else f"{100 * rate:.2f} @ {100 * at:.2f}"


def remarks(groups: Groups) -> list[str]:
    """What a reader must know before trusting the table."""
    shared = sorted(overlaps(groups), key=lambda overlap: (not overlap.whole, -overlap.shared if not overlap.whole else 0))
    whole = sum(overlap.whole for overlap in shared)
    lines = [NO_START, *(overlap.sentence for overlap in shared[: whole + PARTLY])]
    if len(shared) > whole + PARTLY:
        lines.append(
            f"{len(shared) - whole - PARTLY} more pairs of groups share points, no more than these, as collapsed models do."
        )
    empty = [name for name, points in groups.items() if not points]
    if empty:
        lines.append(f"Without points: {', '.join(empty)}.")
    filled = len(groups) - len(empty)
    return [*lines, f"The figure shows the first {DRAWN} of {filled} groups."] if filled > DRAWN else lines


def write_published(paths: list[Path], out: Path | None) -> list[str]:
    """Writes a page, its figure, frontier.csv and results.csv into the folder; returns the lines to print. Raises
    UserError."""
    groups = read_all(paths)
    folder = out or Path(f"{paths[0].stem}-report")
    rows = frontier_rows(groups)
    kept = {name: {point.label for point in pareto(points)} for name, points in groups.items()}
    points = [
        {"group": name, "point": p.label, "top1": p.top1, "asr": p.asr, "pareto": int(p.label in kept[name])}
        for name, group in groups.items()
        for p in group
    ]
    shown = panels(groups)[:DRAWN]
    drawing, notes, numbers = frontier(shown), remarks(groups), table(rows)
    command = " ".join(["python -m report", *(f"--import {shlex.quote(str(path))}" for path in paths)])
    files = {
        "frontier.csv": as_csv(list(rows[0]), rows).encode(),
        "results.csv": as_csv(["group", "point", "top1", "asr", "pareto"], points).encode(),
        "frontier.png": render(drawing, "png", command),
        "frontier.pdf": render(drawing, "pdf", command),
        "notes.txt": ("\n".join(notes) + "\n").encode(),
    }
    page = {"title": ", ".join(path.name for path in paths), "notes": notes, "rows": numbers, "command": command}
    pictures = {"wide": svg(drawing), "narrow": svg(frontier(shown, 1))}
    files["index.html"] = filled("published.html.j2", **page, **pictures).encode()
    write_files(folder, files)
    return [
        in_lines(numbers),
        *(f"Note: {note}" for note in notes),
        str(folder / "index.html"),
        str(folder / "frontier.png"),
    ]
