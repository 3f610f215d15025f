"""Audits of a study's models (python -m engine.audit RUN), each number beside those of clean models.

The clean models are the study's own, twins and pre-trainings without poison, that were asked the same on the same pictures;
where none was, those that the audit itself was given by --null.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from measures.outliers import FLAGGED, p_value
from records.audit import CONSPICUOUS, AuditJson, AuditName, StampFound
from report.load import Record, Study
from report.points import percent

AXES: dict[AuditName, str] = {
    "decree": "stamp that makes pictures alike (% of a picture)",
    "targets": "largest anomaly index of a class",
    "texts": "what a vector adds to captions' mean cosine",
}
PUBLISHED: dict[AuditName, float] = {"decree": 100 * CONSPICUOUS, "targets": FLAGGED}  # where a published rule accuses
HEADS = ("model", "audit", "found", "towards", "ASR of the stamp", "IoU", "clean models", "p", "least p")
COLUMNS = [
    "run",
    "title",
    "model",
    "audit",
    "value",
    "target",
    "planted",
    "asr",
    "asr_floor",
    "iou",
    "clean",
    "p",
    "smallest",
]


class Audited(NamedTuple):
    """One number of a model's audit; `clean` are those of clean models, and p is against them (None: of a clean model
    itself, or without any)."""

    run: str
    title: str
    model: str  # poisoned, cleaned, or clean
    audit: AuditName
    value: float  # as AXES says
    found: StampFound | None
    target: str | None
    planted: list[str] | None
    clean: tuple[float, ...]
    p: float | None

    @property
    def smallest(self) -> float | None:
        """The least p that so many clean models can show."""
        return 1 / (len(self.clean) + 1) if self.clean else None


def audits(study: Study) -> list[Audited]:
    """All numbers of all audits of a study's runs."""
    own = [(record, record.audit) for record in study.records if record.audit is not None]
    clean = [audit for record, audit in own if is_clean(record, audit)]
    return [one for record, audit in own for one in _numbers(record, audit, clean)]


def is_clean(record: Record, audit: AuditJson) -> bool:
    """Whether nothing of a run was ever poisoned."""
    return record.run.stage != "clean" and audit.targets_planted == []


def _numbers(record: Record, audit: AuditJson, clean: list[AuditJson]) -> Iterable[Audited]:
    numbers = audit.numbers()
    each = {other.digest: other for other in clean}  # two runs may hold the same weights
    others = [other for digest, other in each.items() if digest != audit.digest and audit.comparable(other)]
    kind = "clean" if is_clean(record, audit) else "cleaned" if record.run.stage == "clean" else "poisoned"
    scan = audit.targets
    for name, value in numbers.items():
        against = [other.numbers()[name] for other in others if name in other.numbers()]
        if not against and name in audit.null:
            against = audit.null[name].clean
        found = {"decree": audit.decree, "targets": None if scan is None else scan.smallest}.get(name)
        yield Audited(
            run=record.run.run,
            title=record.run.title,
            model=kind,
            audit=name,
            value=shown(name, value),
            found=found,
            target=found.target if found is not None else audit.texts.target if audit.texts is not None else None,
            planted=audit.targets_planted,
            clean=tuple(shown(name, other) for other in against),
            p=p_value(value, against).p if against and kind != "clean" else None,
        )


def shown(name: AuditName, value: float) -> float:
    """A number as AXES names it: DECREE's as a share of a picture in percent, where small is conspicuous."""
    return -100 * value if name == "decree" else value


def audit_rows(found: Iterable[Audited]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For a table: of each the run's title, and under HEADS a cell with a remark."""
    rows = []
    for one in found:
        stamp = one.found
        unit = " %" if one.audit == "decree" else ""
        none = "no stamp found" if stamp is not None and not stamp.succeeded else ""
        planted = f"planted: {', '.join(one.planted)}" if one.planted else ""
        cells = [(one.model, ""), (one.audit, ""), (f"{one.value:.2f}{unit}", none), (one.target or "", planted)]
        asr, floor = (None, None) if stamp is None else (stamp.asr, stamp.asr_floor)
        cells.append(("", "") if asr is None else (percent(asr), f"{percent(floor or 0.0)} without it"))
        cells.append(("" if stamp is None or stamp.iou is None else f"{stamp.iou:.2f}", ""))
        cells.append((str(len(one.clean)), ""))
        cells += [("" if p is None else f"{p:.3f}", "") for p in (one.p, one.smallest)]
        rows.append((one.title, cells))
    return rows


def audit_table(found: Iterable[Audited]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of audits.csv."""
    rows: list[dict[str, Any]] = []
    for one in found:
        facts = {name: getattr(one, name) for name in ("run", "title", "model", "audit", "value", "target", "p", "smallest")}
        stamp = {} if one.found is None else one.found.model_dump(include={"asr", "asr_floor", "iou"})
        rows.append({**facts, **stamp, "planted": ", ".join(one.planted or []), "clean": len(one.clean)})
    return COLUMNS, rows
