"""What was found of a run beside its training: whether it is of that run, and what of it, computed anew, is not as it says.

detection.json: a detector's numbers from the order of its scores, what it flags of the twin from the twin's histogram;
audit.json: anomaly indices from the stamps' sizes, p from the clean models' numbers; of detectors at test time what follows
from their ROC curve. What a record holds too little of to be computed anew is as its submitter states it, and `stated` says
what that is.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from measures.detectors.order import Order, read_order
from measures.detectors.ranking import number_at, numbers
from measures.outliers import FLAGGED, anomaly_index, p_value
from records.audit import CONSPICUOUS, AuditJson, StampFound
from records.audit import FOLDER as AUDITED
from records.detection import FOLDER as SCORED
from records.detection import DetectionJson, DetectorResult
from records.digests import file_digest
from records.ending import FinishedJson
from records.rows import FILE
from records.spec_json import attacks_in, control_of, fingerprint, left_in, of_all_pairs, stage_of
from report.load import Record
from report.test_time import rejection_faults

Runs = Mapping[str, Record]


def finding_faults(folder: Path, record: Record, decides: dict[str, Any], runs: Runs) -> Iterator[str]:
    """A sentence for each thing that records of a run, in its folder, say otherwise than its spec, its end, or their own
    values; `runs` are all of the study."""
    if record.detection is not None:
        path, faults = folder / DetectionJson.FILE, _detection(folder, record.detection, record, decides, runs)
        yield from (f"{path} {fault}" for fault in faults)
    yield from (f"{folder / FILE} {fault}" for fault in rejection_faults(record))
    if record.audit is not None:
        yield from (f"{folder / AUDITED / AuditJson.FILE} {fault}" for fault in _audit(record.audit, record, decides))


def stated(found: DetectorResult, twin: DetectionJson | None) -> list[str]:
    """What of a detector's result nobody can compute anew from the records, for a mark; `twin` is the twin's record."""
    words = ["its numbers"] if found.numbers and not found.order else []
    words += ["the twin's share"] if found.twin and (twin is None or twin.of(found.title) is None) else []
    told = f"{' and '.join(words)} are stated by the submitter: the records hold too little to compute them anew"
    return [told] if words else []


def _own(name: str, weights: str, record: Record, folder: str) -> Iterator[str]:
    """Whether a record that names a run and weights is of this run."""
    if name != folder:
        yield f"is of {name}, and lies in {folder}"
    elif not isinstance(record.end, FinishedJson) or record.end.weights != weights:
        yield f"is of other weights than {folder} has"


def _detection(folder: Path, found: DetectionJson, record: Record, decides: dict[str, Any], runs: Runs) -> Iterator[str]:
    yield from _own(found.run, found.weights, record, folder.name)
    for name, digest in found.files.items():
        path = folder / SCORED / Path(name).name
        if path.is_file() and file_digest(path) != digest:
            yield f"has another SHA-256 of {path.name} than that file"
    if record.run.stage == "clean":
        yield "scores the pairs of a cleaning; only those of a pre-training or a twin are scored"
    card = record.card
    if card is not None and (found.pairs, found.poisoned) != (card.pairs, card.poisoned_pairs):
        yield (
            f"says {found.pairs:,} pairs, {found.poisoned:,} poisoned; the run's card says {card.pairs:,} and "
            f"{card.poisoned_pairs:,}"
        )
    twin = None if found.twin is None else runs.get(found.twin)
    if found.twin is not None and found.twin != twin_of(decides):
        yield f"is told beside {found.twin}, which is not the run's twin"
    titles = [one.title for one in found.detectors]
    yield from (f"has two detectors {title}" for title in sorted(set(titles)) if titles.count(title) > 1)
    theirs = None if twin is None else twin.detection
    for one in found.detectors:
        of_twin = None if theirs is None else theirs.of(one.title)
        faults = [*_asked(one, found.asked), *_counts(one, found), *_ranking(one), *_of_twin(one, of_twin)]
        yield from (f"says of {one.title} {fault}" for fault in faults)


def twin_of(decides: dict[str, Any]) -> str | None:
    """The folder of the untouched twin of a pre-training with this spec.json; None of another run."""
    data = decides.get("data")
    if stage_of(decides) != "pretrain" or not isinstance(data, dict) or not isinstance(data.get("pretrain"), dict):
        return None
    return f"twin-{fingerprint({**decides, 'attack': {}, 'data': of_all_pairs(data)})}"


def _asked(one: DetectorResult, asked: dict[str, Any]) -> Iterator[str]:
    """Whether its settings are those that were asked for."""
    sections = asked.get("detectors")
    kinds = [section for section in sections if isinstance(section, dict)] if isinstance(sections, list) else []
    own = [{name: value for name, value in section.items() if name not in ("kind", "name")} for section in kinds]
    told = [settings for settings, section in zip(own, kinds, strict=True) if section.get("kind") == one.kind]
    if one.kind != "foreign" and one.settings not in told:
        yield f"settings {one.settings}, which were not asked for"


def _counts(one: DetectorResult, found: DetectionJson) -> Iterator[str]:
    budget = found.asked.get("budget")
    share, count = ((budget or {}).get(name) if isinstance(budget, dict) else None for name in ("share", "count"))
    if one.scored > found.pairs - found.replaced and one.kind != "foreign" or one.scored > found.pairs:
        yield f"that it scored {one.scored:,} pairs of {found.pairs:,}, of which {found.replaced:,} could not be decoded"
    wanted = count if isinstance(count, int) else None
    if isinstance(share, float):
        wanted = number_at(share, one.scored) if 0 < share < 1 else 0
    if one.flagged > one.scored or wanted is not None and one.scored and one.flagged != min(wanted, one.scored):
        yield f"{one.flagged:,} flagged of {one.scored:,}, which is not the budget {budget}"
    if sum(one.poisoned) > found.poisoned or one.edges and sum(one.clean) + sum(one.poisoned) != one.scored:
        yield f"a histogram of {sum(one.clean):,} clean and {sum(one.poisoned):,} poisoned pairs, which are not those scored"


def _ranking(one: DetectorResult) -> Iterator[str]:
    """What the order of its scores gives otherwise."""
    if not one.order:
        rates = {name: value for rates in (one.numbers, *one.attacks.values()) for name, value in rates.items()}
        yield from (f"{name} {value:g}, which is no share" for name, value in rates.items() if not 0 <= value <= 1)
        return
    try:
        order = read_order(one.order)
        ranking = order.ranking()
        of_attacks = {str(at + 1): numbers(order.ranking(at)) for at in np.flatnonzero(order.poisoned.any(0)).tolist()}
    except ValueError as error:
        yield f"an order of pairs that can't be read: {error}"
        return
    totals = (int(ranking.alarms[-1]), int(ranking.hits[-1]))
    if totals != (sum(one.clean), sum(one.poisoned)):
        yield f"an order of {totals[0]:,} clean and {totals[1]:,} poisoned pairs, which are not those of its histogram"
        return
    yield from _apart(one.numbers, numbers(ranking))
    if len(of_attacks) > 1 or one.attacks:
        if one.attacks.keys() != of_attacks.keys():
            yield f"numbers of attacks {', '.join(one.attacks)}; its order is of {', '.join(of_attacks)}"
        for name in one.attacks.keys() & of_attacks.keys():
            yield from (f"of attack {name} {fault}" for fault in _apart(one.attacks[name], of_attacks[name]))
    least, most = order.caught(one.flagged)
    if one.poisoned_flagged is None or not least <= one.poisoned_flagged <= most:
        yield f"{one.poisoned_flagged} poisoned among {one.flagged:,} flagged, of which its order has {least:,} to {most:,}"
    yield from _off_curve(one.curve, order, totals)


def _apart(told: Mapping[str, float], found: Mapping[str, float]) -> Iterator[str]:
    """The numbers that are not those computed anew."""
    for name in dict.fromkeys([*told, *found]):
        own, anew = told.get(name), found.get(name)
        if own is None or anew is None or not isclose(own, anew, rel_tol=1e-9, abs_tol=1e-9):
            yield f"{name} {own}, which computed anew is {anew}"


def _off_curve(curve: Iterable[tuple[float, float]], order: Order, totals: tuple[int, int]) -> Iterator[str]:
    """A point of a ROC curve that the order does not give."""
    clean, poisoned = totals
    hits = np.concatenate([[0], np.cumsum(order.poisoned.sum(1))])
    whole = hits + np.concatenate([[0], np.cumsum(order.clean)])
    for fpr, tpr in curve:
        if abs(np.interp(fpr * clean + tpr * poisoned, whole, hits) - tpr * poisoned) > 1e-6 * poisoned:
            yield f"a point of its curve, ({fpr:g}, {tpr:g}), which its order does not give"
            return


def _of_twin(one: DetectorResult, theirs: DetectorResult | None) -> Iterator[str]:
    """Shares of the twin's pairs that the twin's own record excludes: each is held against a histogram."""
    if theirs is None or not theirs.scored or not one.twin:
        return
    bounds = {"threshold": one.threshold, **one.thresholds}
    for name, share in one.twin.items():
        if name == "rule":
            least = most = theirs.flagged / theirs.scored
        elif name in bounds and theirs.edges:
            least, most = (count / theirs.scored for count in _above(theirs, bounds[name]))
        else:
            continue
        if not least - 1e-9 <= share <= most + 1e-9:
            yield f"{share:g} of the twin's pairs flagged ({name}), of which the twin's scores have {least:g} to {most:g}"


def _above(one: DetectorResult, bound: float) -> tuple[int, int]:
    """The least and the most pairs that have at least this score, by a histogram whose outer bins hold what lies beyond."""
    counts = [bad + good for bad, good in zip(one.clean, one.poisoned, strict=False)]
    bins = list(zip(one.bins, one.bins[1:], counts, strict=False))
    least = sum(count for low, _, count in bins[1:] if low > bound) if bins else 0
    most = sum(count for _, high, count in bins[:-1] if high >= bound) + (bins[-1][2] if bins else 0)
    return least, most


def _audit(found: AuditJson, record: Record, decides: dict[str, Any]) -> Iterator[str]:
    yield from _own(found.run or "no run", found.digest, record, record.run.run)
    model = decides.get("model")
    if isinstance(model, dict) and found.model != model.get("name"):
        yield f"is of a {found.model}, and the run's model is {model.get('name')}"
    if found.targets_planted != (planted := targets_of(decides)):
        yield f"says targets {found.targets_planted}; by the run's spec they are {planted}"
    stamps: dict[str, StampFound | None] = {"decree": found.decree}
    stamps["targets"] = None if found.targets is None else found.targets.smallest
    for name, stamp in stamps.items():
        if stamp is not None and bool(stamp.size) != bool(stamp.share):
            yield f"says of {name} a stamp of size {stamp.size:g} and {stamp.share:g} of a picture"
    if (one := found.decree) is not None and one.conspicuous != (one.succeeded and one.share < CONSPICUOUS):
        yield f"says of decree conspicuous {one.conspicuous}, with {one.share:g} of a picture"
    if (scan := found.targets) is not None:
        index = anomaly_index([one.size for one in scan.classes])
        anew = dict(zip([one.name for one in scan.classes], index or (), strict=False))
        told = {one.name: one.index for one in scan.classes if one.index is not None}
        flagged = [name for name, value in anew.items() if value > FLAGGED]
        yield from (f"says of targets {fault}" for fault in _apart(told, anew))
        yield from (
            f"says of targets {fault}" for fault in _apart(_known(scan.index), _known(max(anew.values(), default=None)))
        )
        if flagged != scan.flagged:
            yield f"says of targets {scan.flagged} above {FLAGGED:g}; the classes' sizes give {flagged}"
    for audit, null in found.null.items():
        anew = dict(zip(("p", "smallest"), p_value(null.value, null.clean), strict=True)) if null.clean else {}
        anew |= {"value": found.numbers()[audit]} if audit in found.numbers() else {}
        yield from (f"says of {audit} {fault}" for fault in _apart(null.model_dump(exclude={"clean"}), anew))


def targets_of(decides: dict[str, Any]) -> list[str] | None:
    """What a run was poisoned towards by its spec, [] of a clean one; None where its start is nobody's run."""
    attack, trained, poisoned = decides.get("attack"), decides.get("pretrain"), left_in(decides)
    if not attack or control_of(decides) is not None and not poisoned:
        return []
    ours = isinstance(trained, dict) and not trained.get("start")
    if not isinstance(attack, dict) or not (ours or poisoned):
        return None
    aims = [aim for aim in attacks_in(attack) if aim]
    doses = [aim.get("poison", attack.get("poison")) for aim in aims]
    given = [isinstance(dose, dict) and (dose.get("count") or dose.get("fraction")) for dose in doses]
    return [str(aim.get("target")) for aim, any_pair in zip(aims, given, strict=True) if any_pair]


def _known(index: float | None) -> dict[str, float]:
    return {} if index is None else {"index": index}
