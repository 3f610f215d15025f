"""What a study measured, by way of pre-training: panels of points for the frontier, and beside them the controls."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from measures.frontier import FrontierPoint
from records.spec_json import of_cleaning
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
    "safeclip": "SafeCLIP",
    "par": "PAR",
    "deep_cluster": "deep clustering",
    "unlearn": "unlearning",
}

NAMED_ATTACK = re.compile(r"asr(_\d+)")  # the success of a model's second attack, third, ...
FOOLING = ("tensor", "concept")  # kinds of triggers: a pattern may be optimised, a concept look like the target
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
    """All that was measured for one way of pre-training; `finished` of its `total` runs have ended. The drawing is headed by
    `heading`, or by the title if there is none. Controls are never among `points`: `scratch` are cleanings that keep nothing
    of their start, `cleaned_twins` those of twins, whose start is the twin."""

    title: str
    starts: list[FrontierPoint[Origin]]
    twins: list[FrontierPoint[Origin]]
    points: list[FrontierPoint[PointInfo]]
    finished: int
    total: int
    heading: str | None = None
    without: str = ""  # what was measured instead, where no point could be
    cleanings: tuple[int, int] = (0, 0)  # how many cleaning runs have ended, of how many, controls not counted
    scratch: Sequence[FrontierPoint[PointInfo]] = ()
    cleaned_twins: Sequence[FrontierPoint[PointInfo]] = ()
    attack: int = 1  # which of those that its models carry
    fools: bool = False  # whether its trigger may fool a model that was never poisoned
    left_out: bool = False  # whether its models were pre-trained without some of the pairs
    diverged: Sequence[PointInfo] = ()  # of each cleaner the seeds of which every cleaning diverged
    lost: frozenset[int | None] = frozenset()  # the seeds of which every cleaning by every cleaner did

    @property
    def uncleaned(self) -> bool:
        """Whether its study cleans none of its models."""
        return not self.cleanings[1] and not self.points

    def only(self, keep: Callable[[PointInfo], bool]) -> "Panel":
        """The panel with those of its points, scratch's too, and of the seeds that diverged that are to be kept."""
        points, scratch = ([point for point in members if keep(point.label)] for members in (self.points, self.scratch))
        return self._replace(points=points, scratch=scratch, diverged=[info for info in self.diverged if keep(info)])


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


def way_of(run: RunEntry) -> Way:
    """How a run pre-trains: its objective, and the other swept settings that are not of the cleaning."""
    own = {name: value for name, value in run.swept.items() if name not in run.cleaning}
    settings = []
    for key, value in flat(own):
        of_others = "." in key and (of_cleaning(key) or key.startswith(("measure.", "machine.")))
        elsewhere = of_others or key.split(".")[-1] == "seed"  # a name without dots is the user's own
        if not elsewhere and key not in ("pretrain.objective", "pretrain.objective.kind"):
            settings.append((".".join(key.split(".")[-2:]), value))
    return run.pretrain_objective, tuple(settings)


def title(way: Way) -> str:
    """The way of pre-training in words: 'MMCL', or with more settings 'MMCL · poison.count=500'."""
    return " · ".join([spoken(way[0]), *(f"{key}={value}" for key, value in way[1])])


def panels(study: Study) -> list[Panel]:
    """Everything measured, one panel for each way of pre-training and attack that a model carries; seeds share a panel.

    Models that were pre-trained without some of the pairs, and were not cleaned, have none beside those of all pairs:
    report/left_out.py tells of them, and a model without the poisoned pairs has no backdoor, which is no fault.
    """
    attacks = ["", *(match[1] for key in study.results.columns if (match := NAMED_ATTACK.fullmatch(key)))]
    origins = {r.run.run: r.run for r in study.records if r.run.stage == "pretrain"}
    ways: dict[Way, list[Record]] = {}
    settings_of: dict[str, Way] = {}  # a cleaned twin has those of its poisoned model
    for record in study.records:
        if record.run.stage != "twin" and record.run.control != "twin":
            way = way_of(origins.get(record.run.start or "", record.run))
            ways.setdefault(way, []).append(record)
            settings_of.setdefault(repr(record.run.swept), way)
    for record in study.records:
        if record.run.control == "twin":
            ways.setdefault(settings_of.get(repr(record.run.swept), way_of(record.run)), []).append(record)
        elif record.run.stage == "twin":
            objective, settings = way_of(record.run)  # it may know nothing of a swept attack
            for way, members in ways.items():
                members += [record] if way[0] == objective and set(settings) <= set(way[1]) else []
    many, images = len(attacks) > 1, {attack: _images(study, attack) for attack in attacks}
    return [
        _panel(title(way) + _named(attack, members) * many, members, images[attack], attack)
        for way, members in ({way: each for way, each in ways.items() if not _without(each)} or ways).items()
        for attack in attacks
    ]


def _without(members: list[Record]) -> bool:
    """Whether these are models that were pre-trained without some of the pairs, and nothing cleaned them."""
    stages = {record.run.stage for record in members}
    return "clean" not in stages and all(r.run.without is not None for r in members if r.run.stage == "pretrain")


def _named(attack: str, members: list[Record]) -> str:
    """Which of several attacks it is: ' · attack 2 (crane)', or without the target where the runs don't tell one."""
    number = int(attack[1:] or 1)
    targets = {target for member in members if (target := member.target(number)) is not None}
    return f" · attack {number}" + (f" ({targets.pop()})" if len(targets) == 1 else "")


def _images(study: Study, attack: str) -> tuple[str | None, str | None]:
    """The images whose top-1 and whose ASR under an attack are compared: a concept's are a set of their own."""
    of_top1, of_asr = study.compared_images
    having = dict.fromkeys(row["images"] for row in study.results.rows if row.get(f"asr{attack}") is not None)
    return of_top1, of_asr if of_asr in having or not having else next(iter(having))


def _panel(name: str, members: list[Record], images: tuple[str | None, str | None], attack: str) -> Panel:
    """The panel of the runs that share one way of pre-training.

    The uncleaned model is the last evaluation of a finished pre-training run, or else epoch 0 of a
    cleaning run that starts from it. Epoch 0 is never a cleaned point.
    """
    starts: dict[str, FrontierPoint[Origin]] = {}
    twins: dict[str, FrontierPoint[Origin]] = {}
    points: dict[str | None, list[FrontierPoint[PointInfo]]] = {None: [], "fresh": [], "twin": []}
    for record in sorted(members, key=lambda member: member.run.stage == "clean"):
        run = record.run
        origin = run.start or run.run if run.stage == "clean" else run.run  # a pre-training may start from weights
        seen = [
            (moment, FrontierPoint(moment.asr, moment.top1, Origin(origin, run.seed, moment.counts)))
            for moment in timeline(record, images, attack)
            if moment.asr is not None and moment.top1 is not None
        ]
        if run.stage == "clean":
            begun = twins if run.control == "twin" else starts
            points[run.control] += _cleaned(run, seen, begun)
        elif seen and record.finished:
            (starts if run.stage == "pretrain" else twins)[origin] = seen[-1][1]
    finished = sum(member.ended for member in members)
    measured = {key for member in members for row in member.evaluations for key, value in row.items() if value is not None}
    without = "retrieval" if "text_r1" in measured and not measured & {"top1", "asr"} else ""
    cleanings = [member for member in members if member.run.stage == "clean" and member.run.control is None]
    diverged = _diverged(cleanings, points[None], starts)
    gone = {(info.objective, info.seed) for info in diverged}
    others = {member.run.seed for member in cleanings if (cleaner_of(member.run), member.run.seed) not in gone}
    return Panel(
        name,
        list(starts.values()),
        list(twins.values()),
        points[None],
        finished,
        len(members),
        without=without,
        cleanings=(sum(member.ended for member in cleanings), len(cleanings)),
        scratch=_apart(points["fresh"], {point.label.objective for point in points[None]}),
        cleaned_twins=points["twin"],
        attack=int(attack[1:] or 1),
        fools=any(member.trigger(int(attack[1:] or 1)) in FOOLING for member in members),
        left_out=any(member.run.without is not None for member in members),
        diverged=diverged,
        lost=frozenset(info.seed for info in diverged) - others,
    )


def _diverged(
    cleanings: list[Record], points: list[FrontierPoint[PointInfo]], starts: Mapping[str, FrontierPoint[Origin]]
) -> list[PointInfo]:
    """One for each cleaner and seed of which every cleaning ended or diverged, one of them at least diverged, and none has a
    point: what came of it is known."""
    reached = {(point.label.objective, point.label.seed) for point in points}
    seeds: dict[tuple[str, int | None], list[Record]] = {}
    for record in cleanings:
        seeds.setdefault((cleaner_of(record.run), record.run.seed), []).append(record)
    return [
        PointInfo(members[0].run.run, 0, None, cleaner, starts.get(members[0].run.start or ""), seed)
        for (cleaner, seed), members in seeds.items()
        if (cleaner, seed) not in reached
        and any(member.diverged for member in members)
        and all(member.diverged or member.ended for member in members)
    ]


def _apart(scratch: list[FrontierPoint[PointInfo]], cleaners: set[str]) -> list[FrontierPoint[PointInfo]]:
    """The points under a name that is no cleaner's: the same objective may be trained from the start and from scratch."""
    return [
        point._replace(label=point.label._replace(objective=f"{point.label.objective}, fresh weights"))
        if point.label.objective in cleaners
        else point
        for point in scratch
    ]


def _cleaned(
    run: RunEntry, seen: list[tuple[Moment, FrontierPoint[Origin]]], begun: dict[str, FrontierPoint[Origin]]
) -> list[FrontierPoint[PointInfo]]:
    """The points of a cleaning; of the models that cleanings have begun from, adds its own where that is epoch 0."""
    points = []
    for moment, point in seen:
        if moment.epoch == 0:
            if run.control != "fresh":  # whose epoch 0 is of its fresh weights
                begun.setdefault(point.label.run, point)
            continue
        swept = {key: value for key, value in run.swept.items() if key in run.cleaning}
        begin = begun.get(point.label.run)
        info = PointInfo(
            run.run, moment.epoch, run.rate, cleaner_of(run), begin, run.seed, moment.facts, swept, moment.counts
        )
        points.append(FrontierPoint(point.asr, point.top1, info))
    return points


def by_seed(points: Iterable[FrontierPoint[PointInfo]]) -> dict[int | None, list[FrontierPoint[PointInfo]]]:
    """The points of each seed."""
    seeds: dict[int | None, list[FrontierPoint[PointInfo]]] = {}
    for point in points:
        seeds.setdefault(point.label.seed, []).append(point)
    return seeds


def cleaner_of(run: RunEntry) -> str:
    """What a cleaning is called, as people write it."""
    return spoken(run.cleaner or run.clean_objective)


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
