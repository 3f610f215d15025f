"""What a study measured, by way of pre-training: panels of points for the frontier, curves over the epochs."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from measures.frontier import FrontierPoint
from records.study_json import RunEntry
from report.load import Record, Study, flat

NAMES = {
    "mmcl": "MMCL",
    "ssl": "SSL",
    "mmcl_ssl": "MMCL+SSL",
    "siglip": "SigLIP",
    "cleanclip": "CleanCLIP",
    "cyclip": "CyCLIP",
    "slip": "SLIP",
    "roclip": "RoCLIP",
    "par": "PAR",
    "deep_cluster": "deep clustering",
    "unlearn": "unlearning",
}

NAMED_ATTACK = re.compile(r"asr(_\d+)")  # the success of a model's second attack, third, ...
TOP1, ASR = "zero-shot top-1 (%)", "ASR, attack success (%)"  # titles
KNOWN = ("val_loss", "distance", "proxy_asr")  # what a defender can know, who does not see the attack
Way = tuple[str, tuple[tuple[str, str], ...]]  # objective, swept settings


class Counts(NamedTuple):
    """What rates are of: all pictures (top-1), those of other classes than the target (ASR), classes; and the share of those
    others that are taken for the target without the trigger. None is what the journals don't tell; of classes they tell that
    there are more than the largest k of top-k. `one_set`: top-1 and ASR are of the same pictures."""

    pictures: float | None = None
    others: float | None = None
    classes: float | None = None
    floor: float | None = None
    least_classes: int = 2
    one_set: bool = True

    @property
    def share(self) -> float | None:
        """The target's share of the pictures: the accuracy of a model that answers the target for everything."""
        if not self.one_set or self.pictures is None or self.others is None or not 0 < self.others <= self.pictures:
            return None
        return 1 - self.others / self.pictures

    @property
    def chance(self) -> float | None:
        """The accuracy of a model that has learned nothing."""
        return max(1 / self.classes, self.share or 0.0) if self.classes and self.classes >= 1 else None


class Origin(NamedTuple):
    """What a point of a pre-trained model is: its run, its seed, and of how many pictures its rates are."""

    run: str
    seed: int | None = None
    counts: Counts = Counts()


class PointInfo(NamedTuple):
    """What a cleaned point is: its run, epoch, rate and objective, the model it started from, its seed, what else was
    measured there (of how many pictures its rates are, what a defender could know), and its cleaning's swept settings."""

    run: str
    epoch: float
    rate: float | None
    objective: str
    start: FrontierPoint[Origin] | None
    seed: int | None = None
    facts: Mapping[str, float] = {}
    swept: Mapping[str, Any] = {}
    counts: Counts = Counts()


class Panel(NamedTuple):
    """All that was measured for one way of pre-training; `finished` of its `total` runs are done. The drawing is headed by
    `heading`, or by the title if there is none."""

    title: str
    starts: list[FrontierPoint[Origin]]
    twins: list[FrontierPoint[Origin]]
    points: list[FrontierPoint[PointInfo]]
    finished: int
    total: int
    heading: str | None = None
    without: str = ""  # what was measured instead, where no point could be
    cleanings: tuple[int, int] = (0, 0)  # how many cleaning runs are finished, of how many


class Curve(NamedTuple):
    """One number of a pre-training run over its epochs; one way has one colour."""

    way: str
    label: str
    twin: bool
    line: list[tuple[float, float]]


class Moment(NamedTuple):
    """What one run measured at one moment, on the compared images; rates in [0, 1]. `facts`: of how many pictures the rates
    are, and what a defender could know, on whichever images it was measured."""

    epoch: float
    top1: float | None
    asr: float | None
    facts: dict[str, float]
    counts: Counts


def timeline(record: Record, images: tuple[str | None, str | None], attack: str = "") -> list[Moment]:
    """The run's numbers on the compared images, in the order of epochs and steps; ASR is that of `attack`, "" the first."""
    moments: dict[tuple[float, float], dict[str, Any]] = {}
    of_top1, of_asr = images
    for row in record.evaluations:
        here = moments.setdefault((row["epoch"], row["step"]), {})
        if row["images"] == of_top1 and row["top1"] is not None:
            here |= {key: row[key] for key in ("top1", "pictures", "classes") if row.get(key) is not None}
            here["least_classes"] = 1 + max(k for k in (1, 5, 10) if f"top{k}" in row)
        if row["images"] == of_asr:
            rates = {key: row.get(f"{key}{attack}") for key in ("asr", "others", "asr_floor")}
            here |= {key: value for key, value in rates.items() if value is not None}
        here |= {key: row[key] for key in KNOWN if row.get(key) is not None}
    return [_moment(epoch, numbers, of_top1 == of_asr) for (epoch, _), numbers in sorted(moments.items())]


def _moment(epoch: float, numbers: dict[str, Any], one_set: bool) -> Moment:
    facts = {key: numbers[key] for key in ("pictures", "others", *KNOWN) if key in numbers}
    pictures, others, classes, floor = (numbers.get(key) for key in ("pictures", "others", "classes", "asr_floor"))
    counts = Counts(pictures, others, classes, floor, numbers.get("least_classes", 2), one_set)
    return Moment(epoch, numbers.get("top1"), numbers.get("asr"), facts, counts)


def _way(run: RunEntry) -> Way:
    """How a run pre-trains: its objective, and the other swept settings that are not of the cleaning."""
    own = {name: value for name, value in run.swept.items() if name not in run.cleaning}
    settings = []
    for key, value in flat(own):
        elsewhere = key.startswith(("clean", "data.clean", "measure", "machine")) or key.endswith("seed")
        if not elsewhere and key not in ("pretrain.objective", "pretrain.objective.kind"):
            settings.append((".".join(key.split(".")[-2:]), value))
    return run.pretrain_objective, tuple(settings)


def title(way: Way) -> str:
    """The way of pre-training in words: 'MMCL', or with more settings 'MMCL · poison.count=500'."""
    return " · ".join([spoken(way[0]), *(f"{key}={value}" for key, value in way[1])])


def panels(study: Study) -> list[Panel]:
    """Everything measured, one panel for each way of pre-training and attack that a model carries; seeds share a panel."""
    attacks = ["", *(match[1] for key in study.results.columns if (match := NAMED_ATTACK.fullmatch(key)))]
    origins = {r.run.run: r.run for r in study.records if r.run.stage == "pretrain"}
    ways: dict[Way, list[Record]] = {}
    for record in study.records:
        if record.run.stage != "twin":
            ways.setdefault(_way(origins.get(record.run.start or "", record.run)), []).append(record)
    for record in study.records:
        if record.run.stage == "twin":
            objective, settings = _way(record.run)  # it may know nothing of a swept attack
            for way, members in ways.items():
                members += [record] if way[0] == objective and set(settings) <= set(way[1]) else []
    many = len(attacks) > 1
    return [
        _panel(title(way) + f" · attack {attack[1:] or 1}" * many, members, study.compared_images, attack)
        for way, members in ways.items()
        for attack in attacks
    ]


def _panel(name: str, members: list[Record], images: tuple[str | None, str | None], attack: str) -> Panel:
    """The panel of the runs that share one way of pre-training.

    The uncleaned model is the last evaluation of a finished pre-training run, or else epoch 0 of a
    cleaning run that starts from it. Epoch 0 is never a cleaned point.
    """
    starts: dict[str, FrontierPoint[Origin]] = {}
    twins: list[FrontierPoint[Origin]] = []
    points: list[FrontierPoint[PointInfo]] = []
    for record in sorted(members, key=lambda member: member.run.stage == "clean"):
        run = record.run
        origin = run.start or run.run if run.stage == "clean" else run.run  # a pre-training may start from weights
        seen = [
            (moment, FrontierPoint(moment.asr, moment.top1, Origin(origin, run.seed, moment.counts)))
            for moment in timeline(record, images, attack)
            if moment.asr is not None and moment.top1 is not None
        ]
        if run.stage == "clean":
            for moment, point in seen:
                if moment.epoch == 0:
                    starts.setdefault(origin, point)
                    continue
                who = spoken(run.cleaner or run.clean_objective)
                swept = {key: value for key, value in run.swept.items() if key in run.cleaning}
                begin = starts.get(origin)
                info = PointInfo(run.run, moment.epoch, run.rate, who, begin, run.seed, moment.facts, swept, moment.counts)
                points.append(FrontierPoint(point.asr, point.top1, info))
        elif seen and record.finished and run.stage == "pretrain":
            starts[origin] = seen[-1][1]
        elif seen and record.finished:
            twins.append(seen[-1][1])
    finished = sum(member.finished for member in members)
    measured = {key for member in members for row in member.evaluations for key, value in row.items() if value is not None}
    without = "retrieval" if "text_r1" in measured and not measured & {"top1", "asr"} else ""
    done = [member.finished for member in members if member.run.stage == "clean"]
    cleanings = (sum(done), len(done))
    return Panel(name, list(starts.values()), twins, points, finished, len(members), without=without, cleanings=cleanings)


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
        run, way, twin = record.run, title(_way(record.run)), record.run.stage == "twin"
        label = f"{way}, seed {run.seed}" if several else way
        out.append((record, Curve(way, f"{label}, twin without poison" if twin else label, twin, [])))
    return out


def spoken(kind: str | None) -> str:
    """An objective's name as people write it; an unlisted one stays as it is."""
    return NAMES.get(kind or "", kind or "an unnamed objective")


def percent(rate: float) -> str:
    """The rate as text: 0.021 is '2.1 %'."""
    return f"{100 * rate:.1f} %"


def rate_text(rate: float | None) -> str:
    """The learning rate as people write it: 0.00003 is '3e-5', 0.05 stays."""
    if rate is None or rate == 0 or abs(rate) >= 0.01:
        return "" if rate is None else f"{rate:g}"
    digits, power = f"{rate:.4e}".split("e")
    return f"{float(digits):g}e{int(power)}"
