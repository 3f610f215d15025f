"""What a study consists of: its runs in order, each known by the fingerprint of all that can change its result."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from configs.detect import Detect
from configs.spec import Point, Spec
from configs.stage import Stage
from configs.sweep import UNTRAINED, of_leaving
from data.augmentation.augment import Augment
from data.sources import of_all_pairs
from data.without import Without
from records.spec_json import aims_in, fingerprint
from records.study_json import ControlName, LeftOut, Probe, RunEntry, StageName

Address = str | dict[str, str]  # of shards: a pattern, or patterns by name
FORMAT = 5  # raised when the same spec comes to mean another computation


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a pre-training, its untouched twin, or a cleaning that starts from the result of either or from weights
    that the spec names. Runs of one folder are equal."""

    stage: StageName
    spec: Spec
    swept: tuple[tuple[str, Any], ...]
    start: "Run | None" = None
    cleaning: frozenset[str] = frozenset()  # the names in swept that concern the cleaning alone
    places: Mapping[str, Address] = field(default_factory=dict)  # where other runs have the shards of an address
    leaving: frozenset[str] = frozenset()  # the names in swept that concern alone what the pre-training leaves out
    after: Probe | None = None  # what it asks of a cleaned model, whose weights the spec names then
    cleaned: "Run | None" = None  # that one's cleaning

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    @property
    def settings(self) -> Stage:
        """The section of the spec that this run carries out."""
        stage = self.spec.clean if self.stage == "clean" else self.spec.pretrain
        assert stage is not None
        return stage

    @property
    def augment(self) -> Augment:
        """How the further views of its pairs are made."""
        data = self.spec.data
        return data.clean.augment if self.stage == "clean" and data.clean.augment is not None else data.augment

    @property
    def captions(self) -> Augment | None:
        """How captions are varied; None where they are read as they are."""
        return self.augment if self.settings.objective.views[1] > 1 else None

    @property
    def detect(self) -> Detect | None:
        """How its pairs are scored when it is finished; None if they are not."""
        if self.stage == "clean" or self.spec.detect is None:
            return None
        return self.spec.detect.of_twin if self.stage == "twin" else self.spec.detect

    @cached_property
    def untouched(self) -> "Run":
        """The twin of a pre-training: the same without poison and with nothing left out."""
        return replace(self, stage="twin")

    @property
    def of_twin(self) -> bool:
        """Whether it cleans an untouched twin: a control, never a cleaned poisoned model."""
        return self.start is not None and self.start.stage == "twin"

    @property
    def left_out(self) -> Without | None:
        """What it, or the pre-training that it starts from, leaves out; a twin leaves out nothing."""
        return None if self.stage == "twin" or self.of_twin else self.spec.data.pretrain.left_out

    @cached_property
    def whole(self) -> "Run | None":
        """Of a pre-training that leaves pairs out, the same with nothing left out."""
        if self.stage != "pretrain" or self.left_out is None:
            return None
        spec = self.spec.model_copy(update={"data": of_all_pairs(self.spec.data)})
        return replace(self, spec=spec, swept=tuple(one for one in self.swept if one[0] not in self.leaving))

    @property
    def scored(self) -> "Run | None":
        """The run whose detector says what this pre-training leaves out."""
        return self.whole if self.left_out is not None and self.left_out.detector is not None else None

    @property
    def needs(self) -> "Run | None":
        """The run that must be finished before it begins: the start of a cleaning, or what says which pairs to leave out."""
        return self.start or self.scored

    @property
    def decides(self) -> dict[str, Any]:
        """All that can change the result, as plain values; not the name, the machine, or what is measured."""
        spec = self.spec.model_dump(mode="json")
        for path in UNTRAINED:
            *sections, name = path.split(".")
            section = reduce(getitem, sections, spec)
            if section is not None:  # `pretrain` may be
                section.pop(name)
        data, attack = spec["data"], {} if self.stage == "twin" else spec["attack"]
        clean = data.pop("clean")
        self._leave_out(data["pretrain"])
        self._move(data["pretrain"], clean)
        out = {"format": FORMAT, "seed": spec["seed"], "data": data, "attack": attack, "model": spec["model"]}
        for stage in (spec["pretrain"], spec["clean"]):
            for start in (stage["start"], (stage["transform"] or {}).get("to")) if stage is not None else ():
                if start is not None and start["digest"]:
                    start.pop("path")  # the weights themselves count, not where they lie
        if self.stage != "clean" or self.start is not None:
            out["pretrain"] = spec["pretrain"]
        if self.stage == "clean" or clean["held_out"] and clean["shards"] is None:
            data["clean"] = clean  # what is held out changes the pre-training
        if self.stage == "clean":
            out["clean"] = spec["clean"]
        if self.after is not None and self.after.kind == "perturb" and self.spec.after and self.spec.after.perturb:
            out["perturb"] = {**self.spec.after.perturb.model_dump(mode="json"), "on": self.measured}
        if self.of_twin:
            out["start"] = "twin"  # the attack stays: its pairs are those that the clean set leaves out
        return out

    def _leave_out(self, pretrain: dict[str, Any]) -> None:
        """Takes out of a spec's section what is not left out, and where the file lies whose keys are."""
        if self.left_out is None:
            pretrain.pop("without", None)
        elif self.left_out.digest is not None:
            pretrain["without"] = {"digest": self.left_out.digest}
        elif self.spec.detector is not None:
            detector = self.spec.detector.model_dump(mode="json", exclude={"name"})
            pretrain["without"] = {**pretrain["without"], "detector": detector}

    def _move(self, pretrain: dict[str, Any], clean: dict[str, Any]) -> None:
        """Puts into a spec's sections the addresses under which other runs know the same shards."""
        source = self.spec.data.pretrain
        place = self.places.get(address(source.patterns))
        if isinstance(place, str):
            pretrain["shards"] = place
        elif place is not None:
            pretrain["sources"] = {name: {**pretrain["sources"][name], "shards": place[name]} for name in place}
        if clean["shards"] is not None:
            clean["shards"] = self.places.get(address(clean["shards"]), clean["shards"])

    @property
    def measured(self) -> dict[str, Any]:
        """What is measured and on what, as plain values; a finished run is measured again when it changes. A twin is known
        by its training alone, so that here stands under which attack its success was measured."""
        spec = self.spec.model_dump(mode="json")
        out = {"measure": spec["measure"], "test": spec["data"]["test"], "labels": spec["data"]["labels"]}
        if self.stage == "twin":
            out["attack"] = aims_in(spec["attack"])
        return out | ({} if spec["attack"]["proxy"] is None else {"proxy": spec["attack"]["proxy"]})

    @property
    def fingerprint(self) -> str:
        """12 hex digits."""
        return fingerprint(self.decides)

    @cached_property
    def folder(self) -> str:
        """The name of the run's folder."""
        return f"{self.stage}-{self.fingerprint}"

    @property
    def origin(self) -> str | None:
        """What the run starts from: a run's folder, or `weights-` and the first digits of their digest or their name."""
        if self.start is not None:
            return self.start.folder
        weights = self.settings.start
        if self.after is not None and weights is not None:
            return Path(str(weights.path)).name
        return None if weights is None else f"weights-{(weights.digest or weights.pretrained or str(weights.path))[:12]}"

    @property
    def pretrained_with(self) -> str:
        """The objective that the model was pre-trained with, or where its weights come from."""
        if self.cleaned is not None:
            return self.cleaned.pretrained_with
        if self.stage != "clean":
            return self.settings.objective.kind
        if self.start is not None:
            return self.start.settings.objective.kind
        weights = self.settings.start
        assert weights is not None
        return weights.pretrained or Path(str(weights.path)).stem

    @property
    def cleaner(self) -> str | None:
        """What a cleaning is called: the choices of the named axes that concern it, or its objective's kind."""
        if self.cleaned is not None:
            return self.cleaned.cleaner
        if self.stage != "clean":
            return None
        named = [str(value) for name, value in self.swept if name in self.cleaning and "." not in name]
        return " ".join(named) or self.settings.objective.kind

    @property
    def title(self) -> str:
        """A few words for people: the stage, how it was pre-trained, the cleaner, and what the sweep sets for each."""
        if self.cleaned is not None and self.after is not None:
            return f"{self.cleaned.title}, then {in_words(self.after)}"
        cleans = self.stage == "clean"
        fields: dict[bool, list[str]] = {False: [], True: []}  # of the pre-training, of the cleaning
        for path, value in self.swept:
            of_cleaning = path in self.cleaning
            in_cleaner = of_cleaning and "." not in path  # whose name it is
            if not (in_cleaner or path.endswith(".objective") or of_leaving(path)):
                fields[of_cleaning or cleans and path == "seed"].append(f"{path.rsplit('.', 1)[-1]}={value}")
        before = [self.pretrained_with, *fields[False], *([f"without {self.left_out}"] if self.left_out is not None else [])]
        twin, after = ["twin"] * self.of_twin, ["->", str(self.cleaner), *fields[True]] if cleans else []
        return " ".join([self.stage, *before, *twin, *after])

    @property
    def control(self) -> ControlName | None:
        """Which control of cleaners it is, if any."""
        if self.of_twin:
            return "twin"
        transform = self.settings.transform if self.stage == "clean" else None
        return "fresh" if transform is not None and transform.forgets else None

    def entry(self) -> RunEntry:
        """The run as study.json lists it."""
        cleans = self.stage == "clean"
        return RunEntry(
            run=self.folder,
            stage=self.stage,
            title=self.title,
            start=self.origin,
            pretrain_objective=self.pretrained_with,
            clean_objective=self.settings.objective.kind if cleans else None,
            cleaner=self.cleaner,
            rate=self.settings.optimizer.rate,
            seed=self.spec.seed,
            swept={name: value for name, value in self.swept if cleans or name not in self.cleaning},
            cleaning=tuple(sorted(self.cleaning)) if cleans else (),
            control=self.control,
            without=self._entry_of_left_out(),
            after=self.after,
        )

    def _entry_of_left_out(self) -> LeftOut | None:
        if self.whole is None or self.left_out is None:
            return None
        without = self.left_out
        share = without.share if without.random is None else without.random
        return LeftOut(
            way=without.way, file=without.file, detector=without.detector, share=share, count=without.count,
            whole=self.whole.folder,
        )  # fmt: skip


def in_words(probe: Probe) -> str:
    """What a probe does, for people."""
    of_twin = " of its twin" * probe.twin
    if probe.kind == "retune":
        return f"tuning{of_twin} with {probe.amount:g} poisoned pairs" if probe.amount else f"clean tuning{of_twin}"
    if probe.kind == "line":
        return f"{probe.amount:g} of the way to the poisoned weights"
    if probe.kind == "perturb":
        return f"perturbed pictures{of_twin}"
    others = {"int8": "int8 weights", "bf16": "bf16 weights", "average": "the average with its twin"}
    return others.get(probe.kind, "BatchNorm estimated anew")


def address(patterns: Address) -> str:
    """The address of shards as one text."""
    return json.dumps(patterns, sort_keys=True)


def runs(points: Iterable[Point], stage: str | None = None, places: Mapping[str, Address] = {}) -> list[Run]:
    """All runs of a study, each once, a start before what starts from it, and a cleaning before its control on the twin;
    `stage` keeps those of one stage."""
    out: dict[str, Run] = {}
    twins: dict[str, Run] = {}  # by the folder of the pre-training
    for number, point in enumerate(points):
        spec = point.spec
        swept = tuple(point.swept.items())
        unleft = tuple(one for one in swept if one[0] not in point.leaving)
        of_whole = unleft if spec.data.pretrain.without is None else swept
        run = partial(Run, cleaning=point.cleaning, places=places, leaving=point.leaving)
        first: Run | None = None
        if spec.pretrain is not None and (spec.clean is None or spec.clean.start is None):
            first = run("pretrain", spec, of_whole)
            if first.whole is not None and first.left_out is not None and first.left_out.in_study:
                out.setdefault(first.whole.folder, first.whole)
            first = out.setdefault(first.folder, first)
            if spec.attack.twin == "each" or spec.attack.twin == "first" and number == 0:
                twin = run("twin", spec, unleft)
                twins.setdefault(first.folder, out.setdefault(twin.folder, twin))
        if spec.clean is not None:
            starts = [first]
            if first is not None and first.folder in twins and spec.attack.clean_twin:
                starts.append(twins[first.folder])
            for start in starts:
                last = run("clean", spec, of_whole, start)
                out.setdefault(last.folder, last)
    order = {"pretrain": 0, "twin": 1, "clean": 2}
    chosen = [run for run in out.values() if stage is None or (run.stage == "clean") == (stage == "clean")]
    return sorted(chosen, key=lambda run: order[run.stage])


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """'path: old -> new' for each field in which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path}: {old} -> {new}"]
