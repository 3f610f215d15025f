"""The report's page, complete in itself: `page.html.j2` filled with a study. Every value is other people's text."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from records.card import Fact
from report.audits import HEADS as AUDIT_HEADS
from report.audits import audit_rows
from report.controls import HEADS, control_rows
from report.costs import STAGES
from report.differences import RULE_HEADS, rule_rows
from report.headline import MEANINGS
from report.left_out import HEADS as LEFT_OUT
from report.load import Record, Study, flat
from report.persistence import HEADS as PERSISTENCE_HEADS
from report.persistence import persistence_rows, sentences
from report.points import rate_text, spoken
from report.suspects import HEADS as SUSPECT_HEADS
from report.suspects import scored_rows
from report.tables import all_numbers, seeds_table
from report.test_time import HEADS as TEST_TIME_HEADS
from report.test_time import detection_rows
from report.verdict import Report

MOST = 5_000  # evaluations that the page lists; more make it slow to open, and nobody reads them there
GRIDS = 12  # grids of poisoned pairs inside the page; the others are named, and lie in their runs' folders

WORDS = (
    ("top-1", "share of pictures whose class is the model's first answer"),
    ("ASR", "attack success rate, the share of triggered pictures of other classes that are taken for the target"),
    ("MMCL", "multimodal contrastive learning, which draws a picture and its own caption together (CLIP's loss)"),
    ("SSL", "self-supervised learning, which draws two views of one picture together, and two of one caption"),
    ("twin", "the same pre-training without poison"),
    ("scratch", "the control of the cleaners: training on the clean data from fresh weights"),
)


class Picture(NamedTuple):
    """A figure as the page shows it: SVG for wide and narrow screens, light and dark; `name`.pdf lies beside the page."""

    name: str
    heading: str
    caption: str
    wide: bytes
    narrow: bytes


def page_of(report: Report, pictures: Sequence[Picture]) -> str:
    """The page, complete in itself: the pictures travel inside it."""
    study, judged = report.study, report.judged
    poisons = list(_poisons(study).items())
    return filled(
        "page.html.j2",
        plan=study.plan,
        total=len(study.records),
        finished=sum(record.finished for record in study.records),
        verdicts=judged.verdicts,
        meanings=MEANINGS,
        summaries=list(zip([panel.title for panel in judged.panels], report.summaries, strict=True)),
        notes=report.notes,
        means=seeds_table(judged),
        all_numbers=all_numbers(judged),
        words=_words(report),
        stages_done=_stages_done(study),
        differences=[difference.sentence for difference in judged.differences],
        thrown=[control.sentence for control in judged.controls if control.sentence],
        controls=(HEADS, control_rows(judged.controls)),
        left_out=(LEFT_OUT, [row.cells for row in report.left_out]),
        persistence=(PERSISTENCE_HEADS, persistence_rows(report.probed), sentences(report.probed)),
        rules=(RULE_HEADS, rule_rows(judged.rules)),
        suspects=(SUSPECT_HEADS, scored_rows(report.scored)),
        test_time=(TEST_TIME_HEADS, detection_rows(report.test_time)),
        audits=(AUDIT_HEADS, audit_rows(report.audits)),
        lacking=judged.notes,
        pictures=pictures,
        poisons=poisons[:GRIDS],
        more_poisons=[runs for _, runs in poisons[GRIDS:]],
        rows=shown(study),
        evaluated=len(study.results.rows),
        by_target=[(column, f"{column}, %") for column in study.by_target],
        costs=report.costs,
        spec=json.dumps(study.plan.spec, indent=2, ensure_ascii=False),
        again=study.again,
        **_cards(study),
    )


def filled(template: str, **values: Any) -> str:
    """A page from one of the templates here, in which every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(picture=_data_uri, digest=_digest, rate=rate_text, name=spoken, flat=flat, tied=_tied)
    return environment.get_template(template).render(**values)


def _words(report: Report) -> list[tuple[str, str]]:
    """What the page's words mean, of those that it uses."""
    said = " ".join([*(panel.title for panel in report.judged.panels), *(cleaner for _, cleaner in report.judged.means)])
    twins = any(panel.twins for panel in report.judged.panels)
    return [(word, meaning) for word, meaning in WORDS if word in ("top-1", "ASR") or word in said or word == "twin" * twins]


def _stages_done(study: Study) -> str:
    """How many runs of each stage are finished: '2 of 2 pre-training, 15 of 16 cleaning'."""
    stages: dict[str, list[bool]] = {}
    for record in study.records:
        stages.setdefault(STAGES[record.run.stage], []).append(record.finished)
    return ", ".join(f"{sum(done)} of {len(done)} {stage}" for stage, done in stages.items())


def _cards(study: Study) -> dict[str, Any]:
    """What the page says of the runs' cards: the machines, what all cards share, and each run's own facts by stage."""
    cards = [record.card for record in study.records if record.card is not None]
    common = _common([card.facts() for card in cards])
    stages: dict[str, list[tuple[Record, list[Fact]]]] = {}
    for record in study.records:
        own = [fact for fact in record.card.facts() if fact not in common] if record.card is not None else []
        stages.setdefault(STAGES[record.run.stage], []).append((record, own))
    machines = Counter(tuple(card.machine_facts()) for card in cards)
    return {"machines": list(machines.items()), "common": common, "stages": list(stages.items())}


def _poisons(study: Study) -> dict[bytes, list[str]]:
    """The grids of poisoned pairs, and the runs that each is of."""
    grids: dict[bytes, list[str]] = {}
    for record in study.records:
        if record.poison:
            grids.setdefault(record.poison, []).append(record.run.run)
    return grids


def shown(study: Study) -> list[dict[str, Any]]:
    """The rows of the page's table: all evaluations, or if they are more than MOST only each run's last moment."""
    if len(study.results.rows) <= MOST:
        return study.results.rows
    return [
        row
        for record in study.records
        for row in record.evaluations
        if (row["epoch"], row["step"]) == (record.evaluations[-1]["epoch"], record.evaluations[-1]["step"])
    ]


def _common(cards: Sequence[Sequence[Fact]]) -> list[Fact]:
    """The facts that all cards share, in the first one's order; none of a single card, which stays whole."""
    return [fact for fact in cards[0] if all(fact in card for card in cards[1:])] if len(cards) > 1 else []


def _tied(sentence: str) -> str:
    """The sentence with its numbers tied to their signs, so that no line breaks between them."""
    whole = sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace("≤ ", "≤\N{NO-BREAK SPACE}")
    return re.sub(r"(?<=top)-(?=1)|(?<=\de)-(?=\d)", "-\N{WORD JOINER}", whole)


def _data_uri(picture: bytes) -> str:
    """The PNG or SVG as an address that needs no network."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _digest(script: str) -> str:
    """The script's SHA-256 in base64, as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
