"""How accuracy, the attack and other numbers grew over pre-training: curves over the epochs."""

from typing import NamedTuple

from report.load import Record, Study
from report.points import timeline, title, way_of

TOP1, ASR = "zero-shot top-1 (%)", "ASR, attack success (%)"  # titles


class Curve(NamedTuple):
    """One number of a pre-training run over its epochs; one way has one colour."""

    way: str
    label: str
    twin: bool
    line: list[tuple[float, float]]


def rate_curves(study: Study) -> dict[str, list[Curve]]:
    """Accuracy and attack success of every pre-training run over its epochs, in percent, under TOP1 and ASR."""
    images = study.compared_images
    drawn: dict[str, list[Curve]] = {TOP1: [], ASR: []}
    for record, curve in _pretrainings(study):
        seen = timeline(record, images)
        top1 = [(moment.epoch, 100 * moment.top1) for moment in seen if moment.top1 is not None]
        asr = [(moment.epoch, 100 * moment.asr) for moment in seen if moment.asr is not None]
        drawn[TOP1].append(curve._replace(line=top1))
        drawn[ASR].append(curve._replace(line=asr))
    return drawn


def curves_of(study: Study, key: str) -> list[Curve]:
    """A measured number of every pre-training run over its epochs, on the first images that have it."""
    lines = []
    for record, curve in _pretrainings(study):
        rows = [row for row in record.evaluations if row.get(key) is not None]
        if line := [(row["epoch"], row[key]) for row in rows if row["images"] == rows[0]["images"]]:
            lines.append(curve._replace(line=line))
    return lines


def _pretrainings(study: Study) -> list[tuple[Record, Curve]]:
    """Every pre-training run, the twins included, with the curve that it is to be drawn as, which has no line yet."""
    shown = [record for record in study.records if record.run.stage != "clean"]
    several = len({record.run.seed for record in shown}) > 1
    out = []
    for record in shown:
        run, way, twin = record.run, title(way_of(record.run)), record.run.stage == "twin"
        label = f"{way}, seed {run.seed}" if several else way
        out.append((record, Curve(way, f"{label}, twin without poison" if twin else label, twin, [])))
    return out
