"""Detection at test time: what each detector says of the poisoned models, of the best cleaned ones and of the twins.

The numbers are those of measures/rejection.py, means over the models of one kind: each start and each twin at its end, and
of each seed the most accurate cleaned model at ASR <= 5 %, or else that of lowest ASR, among those that detectors were
measured on (of a run that another study had finished that is its last epoch alone).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from math import isclose
from statistics import fmean
from typing import Any, NamedTuple

from measures.frontier import CAP, FrontierPoint, best_accuracy, lowest_asr
from measures.rejection_rates import RATES, ROC, SHARES
from report.load import Record, Study
from report.points import Panel, by_seed, percent

WORDS = {name: f"{100 * share:g} %" for name, share in SHARES.items()}  # of triggered pictures among those that come
KINDS = ("poisoned", "cleaned", "twin")
DETECTOR = re.compile(r"(\w+)_auroc_at1")
FLAGGED = re.compile(r"(\w+)_flagged(?:_\d+)?")
AUROCS = re.compile(r"(\w+)_auroc_(at1|at50)((?:_\d+)?)")
ON_CURVE = {f"tpr_{name}": ROC.index(rate) for name, rate in RATES.items()}
NUMBERS = ("auroc", *ON_CURVE, "tpr", "fpr", "precision", "asr", "top1")
HEADS = (
    *("model", "detector", "triggered", "AUROC", "TPR at FPR 1 %", "TPR at FPR 5 %", "TPR", "FPR"),
    *("FPR, none triggered", "precision"),
    *("ASR, after rejecting", "top-1, after rejecting"),
)
COLUMNS = ["way", "model", "models", "of", "detector", "triggered", "auroc", *ON_CURVE, "tpr", "fpr", "precision", "flagged"]
COLUMNS += ["asr_before", "asr", "top1_before", "top1", "refused"]


class Detection(NamedTuple):
    """What a detector says of `models` of the `of` models of one kind; `numbers` are means by the names of
    measures/rejection.py, without those that no model has, `ends` the least and the greatest of each over several models.
    Where it says nothing, `refused` is why."""

    way: str
    model: str  # one of KINDS
    models: int
    of: int
    detector: str
    share: str  # one of SHARES
    before: tuple[float, float]  # ASR and top-1 without it
    numbers: dict[str, float]
    roc: tuple[float, ...]
    refused: str
    ends: dict[str, tuple[float, float]]

    @property
    def after(self) -> tuple[float, float] | None:
        """ASR and top-1 once it rejects, if both are known."""
        numbers = self.numbers
        return (numbers["asr"], numbers["top1"]) if {"asr", "top1"} <= set(numbers) else None


def detections(study: Study, panels: Iterable[Panel]) -> list[Detection]:
    """Of each way of pre-training, kind of model, detector and share one, where it was measured."""
    records = {record.run.run: record for record in study.records}
    names = [found[1] for key in study.results.columns if (found := DETECTOR.fullmatch(key))]
    refused = (row.refused or {} for record in study.records for row in record.counted)
    names = list(dict.fromkeys([*names, *(name for one in refused for name in one)]))
    out = []
    for panel in panels if names else ():
        suffix = f"_{panel.attack}" if panel.attack > 1 else ""
        for kind, told in _models(panel, records, study.compared_images).items():
            ones = [_detection(told, name, share, suffix) for name in names for share in SHARES]
            out += [one._replace(way=panel.title, model=kind) for one in ones if one is not None]
    return out


def rejection_faults(record: Record) -> Iterator[str]:
    """What detectors' numbers at test time, in a run's journal, say that cannot be: rates beyond 0 and 1, or others than
    their ROC curve and each other give."""
    for row in record.measures:
        told = row.model_extra or {}
        detected = [found.groups() for key in told if (found := AUROCS.fullmatch(key))]
        names = {name for name, _, _ in detected}
        alone = [key for key in told if (found := FLAGGED.fullmatch(key)) and found[1] in names]
        yield from (f"says at epoch {row.epoch:g} {key} {_beyond(told[key])}" for key in alone if _beyond(told[key]))
        for name, share, suffix in detected:
            end = f"_{share}{suffix}"
            rates = {rate: told[f"{name}_{rate}{end}"] for rate in NUMBERS if f"{name}_{rate}{end}" in told}
            for fault in _rate_faults(rates, told.get(f"{name}_roc{end}"), SHARES[share]):
                yield f"says at epoch {row.epoch:g} of {name}, {WORDS[share]} triggered, {fault}"


def _beyond(rate: Any) -> str:
    """What is wrong with a number that is no share; '' of a share."""
    share = isinstance(rate, int | float) and 0 <= rate <= 1
    return "" if share else f"{str(rate)[:20]}, which is no share"


def _rate_faults(rates: dict[str, Any], roc: Any, coming: float) -> Iterator[str]:
    beyond = [f"{key} {_beyond(rate)}" for key, rate in rates.items() if _beyond(rate)]
    if beyond:
        yield beyond[0]
        return
    if "precision" in rates and {"tpr", "fpr"} <= rates.keys():
        right, wrong = coming * rates["tpr"], (1 - coming) * rates["fpr"]
        if not isclose(rates["precision"] * (right + wrong), right, abs_tol=1e-9):
            yield f"precision {rates['precision']:g}, which TPR {rates['tpr']:g} and FPR {rates['fpr']:g} do not give"
    if roc is None:
        return
    known = isinstance(roc, list) and len(roc) == len(ROC) and all(isinstance(one, int | float) for one in roc)
    if not known or any(not 0 <= low <= high <= 1 for low, high in pairwise(roc)):
        yield f"roc {str(roc)[:40]}, which is no curve over {len(ROC)} false positive rates"
        return
    yield from (
        f"{key} {rates[key]:g}, whose curve has {roc[at]:g}"
        for key, at in ON_CURVE.items()
        if rates.get(key, roc[at]) != roc[at]
    )
    least = sum((high - low) * tpr for (low, high), tpr in zip(pairwise(ROC), roc, strict=False))
    if rates["auroc"] < least - 1e-6:
        yield f"auroc {rates['auroc']:g}, whose curve has at least {least:g}"


Told = list[tuple[FrontierPoint[Any], dict[str, Any]]]  # models' rates, and all that was measured of each


def _models(panel: Panel, records: Mapping[str, Record], images: tuple[str | None, str | None]) -> dict[str, Told]:
    """The models of each kind, of cleaned ones one for each seed."""
    cleaned: Told = []
    for points in by_seed(panel.points).values():
        members = [(point, _told(records, images, point.label.run, point.label.epoch)) for point in points]
        judged = [point for point, told in members if any(map(DETECTOR.fullmatch, told)) or told.get("refused")]
        best = best_accuracy(judged or points, CAP) or lowest_asr(judged or points, 0.0)
        cleaned += [one for one in members if one[0] is best]
    ends = {"poisoned": panel.starts, "twin": panel.twins}
    ended = {kind: [(point, _told(records, images, point.label.run)) for point in points] for kind, points in ends.items()}
    return {"poisoned": ended["poisoned"], "cleaned": cleaned, "twin": ended["twin"]}


def _told(
    records: Mapping[str, Record], images: tuple[str | None, str | None], run: str, epoch: float | None = None
) -> dict[str, Any]:
    """All that was measured of a model on the compared images: of a run at an epoch or at its end; of weights that no run
    here has made, at epoch 0 of a cleaning that starts from them."""
    record = records.get(run)
    if record is None:
        record = next((one for one in records.values() if one.run.start == run and one.run.control != "fresh"), None)
        epoch = 0
    if record is None or not record.counted:
        return {}
    at = max(row.epoch for row in record.counted) if epoch is None else epoch
    out: dict[str, Any] = {"refused": {}}
    for row in record.counted:
        if row.epoch == at and row.images in images:
            out |= row.model_extra or {}
            out["refused"] |= row.refused or {}
    return out


def _detection(told: Told, name: str, share: str, suffix: str) -> Detection | None:
    """A detector's means over the models that it was measured on, before and after rejecting alike; over those that it was
    refused on where it was on all; None where nothing is told of it."""
    begin, end = f"{name}_", f"_{share}{suffix}"
    found, curves, refused = dict[str, list[float]](), list[list[float]](), ""
    before, without = list[tuple[float, float]](), list[tuple[float, float]]()
    for point, numbers in told:
        reason = numbers.get("refused", {}).get(name, "")
        own = {key: value for key, value in numbers.items() if key.startswith(begin) and key.endswith(end)}
        own |= {key: value for key, value in numbers.items() if key == f"{begin}flagged{suffix}"}
        refused = refused or reason
        if own or reason:
            (before if own else without).append((point.asr, point.top1))
        for key, value in own.items():
            if isinstance(value, list):
                curves.append([float(one) for one in value])
            else:
                found.setdefault(key.removeprefix(begin).removesuffix(end).removesuffix(suffix), []).append(float(value))
    before = before or without
    if not before:
        return None
    asr, top1 = (fmean(rates) for rates in zip(*before, strict=True))
    means = {key: fmean(values) for key, values in found.items()}
    roc = tuple(fmean(at) for at in zip(*curves, strict=True)) if len({len(curve) for curve in curves}) == 1 else ()
    ends = {key: (min(values), max(values)) for key, values in found.items() if len(values) > 1}
    return Detection("", "", len(before), len(told), name, share, (asr, top1), means, roc, refused, ends)


def detection_rows(found: Iterable[Detection]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For a table: of each the way of pre-training, and under HEADS a cell with a remark: of how many models it is, and
    between which ends they lie."""
    rows = []
    for one in found:
        numbers = one.numbers
        cells = [(one.model, _how_many(one)), (one.detector, one.refused), (WORDS[one.share], "")]
        cells.append((f"{numbers['auroc']:.3f}", _ends(one, "auroc", "{:.3f}".format)) if "auroc" in numbers else ("", ""))
        for key in ("tpr_fpr1", "tpr_fpr5", "tpr", "fpr", "flagged"):
            cells.append((percent(numbers[key]), _ends(one, key, percent)) if key in numbers else ("", ""))
        none = "none rejected" if "auroc" in numbers else ""
        cells.append((percent(numbers["precision"]) if "precision" in numbers else none, ""))
        for before, key in zip(one.before, ("asr", "top1"), strict=True):
            after = f"{percent(before)} → {percent(numbers[key])}" if key in numbers else percent(before)
            cells.append((after, _ends(one, key, percent)))
        rows.append((one.way, cells))
    return rows


def _how_many(one: Detection) -> str:
    if one.models < one.of:
        return f"{one.models} of {one.of} models"
    return f"mean of {one.models}" if one.models > 1 else ""


def _ends(one: Detection, key: str, text: Callable[[float], str]) -> str:
    """From the least to the greatest of several models, where they are not written alike."""
    low, high = (text(end).removesuffix(" %") for end in one.ends.get(key, (0.0, 0.0)))
    return f"{low} to {high}" if low != high else ""


def detection_table(found: Iterable[Detection]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of test-time.csv."""
    rows: list[dict[str, Any]] = []
    for one in found:
        facts = {"way": one.way, "model": one.model, "models": one.models, "of": one.of, "detector": one.detector}
        facts |= {"triggered": WORDS[one.share], "asr_before": one.before[0], "top1_before": one.before[1]}
        rows.append(facts | {"refused": one.refused} | one.numbers)
    return COLUMNS, rows
