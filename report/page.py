"""The report's page, complete in itself: `page.html.j2` filled with a study. Every value is other people's text."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from records.card import Fact
from report.costs import STAGES, costs
from report.difference import sentence
from report.exports import Judged, page_table
from report.load import Record, Study, flat
from report.points import panels, spoken
from report.values import rate_text
from report.verdict import notes, summary, verdict

MOST = 5_000  # evaluations that the page lists; more make it slow to open, and nobody reads them there
GRIDS = 12  # grids of poisoned pairs inside the page; the others are named, and lie in their runs' folders


class Picture(NamedTuple):
    """A figure as the page shows it: PNG files for wide and for narrow screens; `name`.pdf lies beside the page."""

    name: str
    heading: str
    caption: str
    wide: bytes
    narrow: bytes


def page_of(read: Study, judged: Judged, pictures: Sequence[Picture]) -> str:
    """The page, complete in itself: the pictures travel inside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    filled = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filled.filters.update(picture=_data_uri, digest=_digest, rate=rate_text, name=spoken, flat=flat, tied=_tied)
    cards = [record.card for record in read.records if record.card is not None]
    machines = Counter(tuple(card.machine_facts()) for card in cards)
    common = _common([card.facts() for card in cards])
    stages: dict[str, list[tuple[Record, list[Fact]]]] = {}
    for record in read.records:
        own = [fact for fact in record.card.facts() if fact not in common] if record.card is not None else []
        stages.setdefault(STAGES[record.run.stage], []).append((record, own))
    poisons: dict[bytes, list[str]] = {}
    for record in read.records:
        if record.poison:
            poisons.setdefault(record.poison, []).append(record.run.run)
    found = panels(read)
    rows, evaluated = shown(read)
    cleaners = list(dict.fromkeys(point.label.objective for panel in found for point in panel.points))
    return filled.get_template("page.html.j2").render(
        plan=read.plan,
        total=len(read.records),
        finished=sum(record.finished for record in read.records),
        verdicts=[verdict(panel) for panel in found],
        summaries=[(panel.title, summary(panel, cleaners)) for panel in found],
        notes=notes(read),
        groups=list(judged.means),
        means=page_table(judged),
        differences=[sentence(one) for one in judged.differences],
        lacking=judged.notes,
        pictures=pictures,
        poisons=list(poisons.items())[:GRIDS],
        more_poisons=[runs for _, runs in list(poisons.items())[GRIDS:]],
        rows=rows,
        evaluated=evaluated,
        costs=costs(read),
        machines=list(machines.items()),
        stages=list(stages.items()),
        common=common,
        spec=json.dumps(read.plan.spec, indent=2, ensure_ascii=False),
        again=read.again,
    )


def shown(read: Study) -> tuple[list[dict[str, Any]], int]:
    """The rows of the page's table, and how many evaluations there are: of more than MOST only each run's last moment."""
    rows = [row for record in read.records for row in record.evaluations]
    if len(rows) <= MOST:
        return rows, len(rows)
    last = [
        row
        for record in read.records
        for row in record.evaluations
        if (row["epoch"], row["step"]) == (record.evaluations[-1]["epoch"], record.evaluations[-1]["step"])
    ]
    return last, len(rows)


def _common(cards: Sequence[Sequence[Fact]]) -> list[Fact]:
    """The facts that all cards share, in the first one's order; none of a single card, which stays whole."""
    return [fact for fact in cards[0] if all(fact in card for card in cards[1:])] if len(cards) > 1 else []


def _tied(sentence: str) -> str:
    """The sentence with its numbers tied to their signs, so that no line breaks between them."""
    whole = sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace("≤ ", "≤\N{NO-BREAK SPACE}")
    return whole.replace("top-1", "top-\N{WORD JOINER}1")


def _data_uri(picture: bytes) -> str:
    """The PNG as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _digest(script: str) -> str:
    """The script's SHA-256 in base64, as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
