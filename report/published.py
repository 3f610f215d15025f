"""Published sweeps, read: one JSON object, of each group `[attack success rates, accuracies]` or nothing.

Such a file holds points alone: no start, no rates, no seeds. What it does not hold is not guessed here.
"""

import json
import math
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from data.refusal import UserError
from measures.frontier import FrontierPoint
from report.values import Mark, Panel

LARGEST = 64 * 2**20  # bytes of a file
MOST = 1_000  # groups of a file
Groups = dict[str, list[FrontierPoint[int]]]  # by name; the label is the place in the list
FORM = 'expected one JSON object such as {"group": [[asr, ...], [accuracy, ...]], "empty": []} with fractions in [0, 1]'


class Overlap(NamedTuple):
    """How many equal points two groups of `sizes` points share."""

    names: tuple[str, str]
    sizes: tuple[int, int]
    shared: int


def read_published(path: Path) -> Groups:
    """The groups of the file, in its order. Raises UserError for anything else than FORM."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST // 2**20} MiB; {FORM}; split it into several files")
        text = path.read_text("utf-8")
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
        for at, one in enumerate(numbers):
            if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= 1 or math.isnan(one):
                given = json.dumps(one, ensure_ascii=True)[:40]
                raise UserError(
                    f"{where} has the {name} {given} at place {at}, expected a fraction in [0, 1]; divide percents by 100"
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
    found: Counter[tuple[str, str]] = Counter()
    for point, names in holders.items():
        for one, other in combinations(names, 2):
            found[one, other] += min(counts[one][point], counts[other][point])
    return [Overlap(pair, (len(groups[pair[0]]), len(groups[pair[1]])), shared) for pair, shared in found.items()]


def sentence(overlap: Overlap) -> str:
    """The overlap as a warning."""
    (one, other), (size, rest), shared = overlap
    if shared == size == rest:
        return f"{one} and {other} hold the same points, {shared}; count them once."
    for small, large, whole in ((one, other, size), (other, one, rest)):
        if shared == whole:
            return f"{small} is a subset of {large}: all its points, {shared}, are also there; count them once."
    return f"{one} and {other} share identical points: {shared} (of {size} and {rest})."


def panels(groups: Groups) -> list[Panel]:
    """A panel for each group that has points; nothing is known of starts, rates and runs."""
    return [
        Panel(
            name, [], [], [FrontierPoint(p.asr, p.top1, Mark(name, 0, None, "published", None)) for p in points], 1, 1, name
        )
        for name, points in groups.items()
        if points
    ]
