"""A spec: one experiment. This file composes the sections; each stands beside the function that it configures."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from configs.after import After
from configs.detect import Detect
from configs.explain import MOST, explain, field_names, paths, suggestion
from configs.machine import Machine
from configs.model import Model
from configs.plain import validated
from configs.sharing import Sharing
from configs.source import Place, SpecTree, override, put, read_source
from configs.stage import Stage
from configs.stamp import identified_stamp
from configs.start import Line, identified
from configs.sweep import (
    Arm,
    Choice,
    Grid,
    Random,
    Range,
    Sweep,
    arms,
    axis_place,
    idle,
    is_path,
    size,
    unswept,
)  # fmt: skip
from configs.without import settled
from data.attack import Attack
from data.augmentation.eda import settle_synonyms
from data.refusal import UserError
from data.section import Section
from data.sources import Data
from data.triggers.concept import Concept
from data.triggers.contract import Square
from measures.concept_success import ConceptSuccess
from measures.contract import CENTRE, PROXY, TRAINED
from measures.detectors.registry import AnyDetector
from measures.registry import AnyMeasure
from records.spec_json import of_cleaning
from records.study_json import NAME


class Spec(Section):
    """Data, attack, model, a stage that pre-trains, a stage that cleans its result, what is measured, the machine."""

    name: str = Field(pattern=NAME, max_length=100, description="the study's folder under runs/")
    question: str | None = Field(None, description="what the study asks, printed on its report")
    seed: int = Field(0, ge=0, lt=1 << 64)
    data: Data
    attack: Attack
    model: Model
    pretrain: Stage | None = Field(None, description="may be left out where clean.start names weights")
    clean: Stage | None = None
    after: After | None = Field(
        None,
        exclude_if=lambda after: after is None,
        description="whether the backdoor comes back: what is asked of the best cleaned model of each start and cleaner",
    )
    detect: Detect | None = Field(
        None,
        exclude_if=lambda detect: detect is None,
        description="how the pairs of each finished pre-training, and of its twin, are scored; default: they are not",
    )
    measure: tuple[AnyMeasure, ...] = Field(min_length=1)
    sweep: Sweep = Sweep()
    machine: Machine = Machine()

    @model_validator(mode="wrap")
    @classmethod
    def _is_plain(cls, values: Any, handler: ModelWrapValidatorHandler["Spec"]) -> "Spec":
        return validated(cls, values, handler)

    @model_validator(mode="after")
    def _has_a_start(self) -> "Spec":
        if self.sweep.axes:
            return self  # its points are what is carried out, and are looked at one by one
        if self.pretrain is None and (self.clean is None or self.clean.start is None):
            raise ValueError("there is nothing to clean: give pretrain, or clean.start with weights to start from")
        if self.attack.clean_twin and (self.clean is None or self.clean.start is not None):
            why = "there is no clean section" if self.clean is None else "clean.start names weights, which have no twin"
            raise ValueError(f"attack.clean_twin is true, but {why}; set it to false")
        if self.data.pretrain.without is not None and (self.pretrain is None or self.clean and self.clean.start):
            raise ValueError(
                "data.pretrain.without leaves pairs out of a pre-training, and this spec carries out none; take it out, or "
                "give pretrain without clean.start"
            )
        if self.pretrain is None or self.pretrain.start is not None:
            return self
        needs = self.pretrain.objective.needs
        for reason, applies in (
            (f"objective {self.pretrain.objective.kind} compares with the model that it starts from", "start" in needs),
            ("transform is given", self.pretrain.transform is not None),
            (f"optimizer.state is {self.pretrain.optimizer.state}", self.pretrain.optimizer.state != "fresh"),
            ("optimizer.path is given", self.pretrain.optimizer.path is not None),
            (f"norms is {self.pretrain.norms}", self.pretrain.norms != "trained"),
        ):
            if applies:
                raise ValueError(
                    f"pretrain.{reason}, which needs weights to start from; use it in clean or give pretrain.start"
                )
        return self

    @model_validator(mode="after")
    def _has_something_to_probe(self) -> "Spec":
        if self.after is None or self.sweep.axes:
            return self
        if self.clean is None:
            raise ValueError("after probes cleaned models, but there is no clean section; give one, or leave after out")
        if self.clean.start is None and not self.attack.clean_twin:
            raise ValueError(
                "after holds a cleaned model against its twin after the same cleaning; set attack.twin to each, or to first "
                "for one pre-training, and attack.clean_twin to true"
            )
        attacked = [measure for measure in self.measure if measure.triggered and measure.attack_kind == TRAINED]
        if self.after.perturb is not None and not attacked:
            raise ValueError(
                "after.perturb looks at pictures with the trigger, but no measure does; add "
                "{kind: attack_success, images: NAME} to measure, or set it to null"
            )
        pairs, most = self.after.pairs or self.data.clean.pairs, max(self.after.retune, default=0)
        if pairs is None:
            raise ValueError(
                "after.pairs is missing, and data.clean.pairs too; say how many pairs a cleaned model is tuned on"
            )
        if most > pairs:
            raise ValueError(
                f"after.retune asks for {most:,} poisoned pairs among {pairs:,} in all; lower it, or raise pairs"
            )
        return self

    @model_validator(mode="after")
    def _sets_are_named(self) -> "Spec":
        for measure in self.measure:
            for name in measure.sets:
                if name not in self.data.test:
                    known = ", ".join(self.data.test) or "none"
                    field = next(key for key, value in measure if value == name)
                    raise ValueError(f"measure.{field} is '{name}', but data.test names {known}; name one of them")
        asked = Counter((measure.kind, measure.images, measure.attack_kind) for measure in self.measure)
        for (kind, images, _), times in asked.items():
            if times > 1:
                raise ValueError(
                    f"measure has {kind} on '{images}' {times} times, whose numbers would replace each other; keep one, or "
                    "name the same pictures a second time in data.test"
                )
        return self

    @model_validator(mode="after")
    def _attacks_can_be_made(self) -> "Spec":
        kinds = {measure.attack_kind: measure.kind for measure in self.measure if measure.triggered}
        if PROXY in kinds and self.attack.proxy is None:
            raise ValueError(
                f"measure {kinds[PROXY]} looks at attack.proxy, which is missing; give it a target and a trigger"
            )
        concepts = [number for number, aim in enumerate(self.attack.aims, 1) if isinstance(aim.trigger, Concept)]
        for measure in self.measure:
            if isinstance(measure, ConceptSuccess) and (
                measure.attack not in concepts if measure.attack else len(concepts) != 1
            ):
                which = f"attack {measure.attack}" if measure.attack else "the one attack whose trigger is of kind concept"
                raise ValueError(
                    f"measure concept_success is of {which}, but those of kind concept are {concepts or 'none'}; set its "
                    "`attack` to one of them"
                )
        if TRAINED in kinds and len(concepts) == len(self.attack.aims):
            raise ValueError(
                f"measure {kinds[TRAINED]} puts a trigger onto pictures, but the attack's is a concept, which is in them "
                "already; use measure concept_success"
            )
        if CENTRE in kinds:
            for aim in self.attack.aims:
                if not isinstance(aim.trigger, Square):
                    kind = aim.trigger.kind
                    raise ValueError(f"measure.place is centre, but a trigger of kind {kind} has no place; leave it out")
        return self

    @model_validator(mode="after")
    def _ranks_outwait_a_store(self) -> "Spec":
        patience, limit = self.data.patience, self.machine.timeout_minutes
        if "patience" in self.data.model_fields_set and patience > limit:
            raise ValueError(
                f"data.patience is {patience:g} minutes, longer than machine.timeout_minutes = {limit:g}, after which ranks "
                "give up one that waits for a store; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _losses_can_be_noted(self) -> "Spec":
        if self.detect is None or self.pretrain is None or self.sweep.axes or not (epochs := self.detect.loss_epochs):
            return self
        if epochs > self.pretrain.epochs:
            raise ValueError(
                f"detect: abl counts {epochs:,} epochs, but pretrain.epochs is {self.pretrain.epochs:,}; lower abl's epochs"
            )
        if self.pretrain.objective.views[1] < 1:
            raise ValueError(
                f"detect: abl compares captions, of which pretrain.objective {self.pretrain.objective.kind} reads none; "
                "leave abl out"
            )
        if self.pretrain.norms == "estimated":
            raise ValueError(
                "detect: abl compares losses of a training, but pretrain.norms is estimated, where no weight is trained; "
                "leave abl out"
            )
        return self

    @model_validator(mode="after")
    def _names_a_detector(self) -> "Spec":
        without = self.data.pretrain.left_out
        if without is not None and without.detector is not None and self.detector is None:
            known = ", ".join(one.title for one in self.detect.detectors) if self.detect is not None else "none"
            raise ValueError(
                f"data.pretrain.without.detector is '{without.detector}', but detect.detectors are {known or 'none'}; name "
                "one of them, or add it there"
            )
        return self

    @property
    def detector(self) -> AnyDetector | None:
        """The detector that says what the pre-training leaves out; None if none does."""
        without = self.data.pretrain.left_out
        if without is None or without.detector is None or self.detect is None:
            return None
        return next((one for one in self.detect.detectors if one.title == without.detector), None)

    @property
    def wait_seconds(self) -> float:
        """For how long a store is waited for: data.patience, but so that a rank says so before others give it up."""
        return 60 * min(self.data.patience, 0.9 * self.machine.timeout_minutes)

    @property
    def stages(self) -> list[Stage]:
        """Those that are given."""
        return [stage for stage in (self.pretrain, self.clean) if stage is not None]


@dataclass(frozen=True)
class Point:
    """One point of a sweep: what it sets, by the names of the axes, and the spec that this makes, without a sweep of its
    own."""

    swept: dict[str, Any]
    spec: Spec
    cleaning: frozenset[str] = frozenset()  # the names that concern the cleaning alone
    leaving: frozenset[str] = frozenset()  # the names that concern alone what the pre-training leaves out


@dataclass(frozen=True)
class Loaded:
    """A spec as read, and what makes points of it."""

    spec: Spec
    source: SpecTree
    points: list[Point]  # of a search by Optuna, each arm's first trials
    places: Mapping[str, str | dict[str, str]] = field(default_factory=dict)  # of the same shards in other runs
    say: Callable[[str], None] = lambda words: None
    sharing: Sharing = field(default_factory=Sharing)  # of the points' equal parts

    @property
    def arms(self) -> list[Arm]:
        """The arms of its sweep."""
        return list(arms(self.spec.sweep))

    def point(self, arm: Arm, chosen: dict[str, Any]) -> Point:
        """The point of an arm at which the rest is chosen so; ValidationError if that is no spec."""
        spec = _settled(Spec.model_validate(self.tree(arm, chosen)), self.say)
        self.sharing.within(spec)
        return Point({**arm.labels, **chosen}, spec, arm.cleaning, arm.leaving)

    def tree(self, arm: Arm, chosen: dict[str, Any]) -> dict[str, Any]:
        """The values of such a point's spec."""
        tree = {**self.source.values, "sweep": {}}
        fields = {**arm.fields, **chosen}
        for path in sorted(fields, key=lambda path: path.count(".")):  # a whole section before a field of it
            put(tree, tuple(path.split(".")), fields[path])
        return tree


def load(path: str | Path, settings: list[str] = [], say: Callable[[str], None] = lambda words: None) -> Loaded:
    """The spec and the points of its sweep in order; a UserError lists every error at once. What a spec leaves to the
    machine is settled here, so that fingerprints tell it, and said."""
    return load_tree(read_source(path), settings, say)


def load_tree(source: SpecTree, settings: list[str] = [], say: Callable[[str], None] = lambda words: None) -> Loaded:
    """The same of values that are read already."""
    for setting in settings:
        override(source, setting, lambda place: axis_place(source.values, place))
    if source.values.get("detect") is None and _names_detector(source.values):
        source.values["detect"] = {}  # the usual detectors
    try:
        spec = Spec.model_validate(source.values)
    except ValidationError as error:
        lines = explain(error, source, Spec)
        heading = f"{source.name}: {len(lines)} error{'s' * (len(lines) > 1)} in the spec"
        raise UserError("\n".join([heading, *lines])) from None
    loaded = Loaded(_settled(spec, lambda words: None), source, [], say=cache(say))  # the same words once
    return replace(loaded, points=expand(loaded))


def _names_detector(values: Any) -> bool:
    """Whether what is left out anywhere in a spec, its sweep among it, is said by a detector."""
    if isinstance(values, list):
        return any(map(_names_detector, values))
    if not isinstance(values, dict):
        return False
    return any(str(name).rpartition(".")[2] == "detector" or _names_detector(value) for name, value in values.items())


def _settled(spec: Spec, say: Callable[[str], None]) -> Spec:
    """The spec with what it leaves to the machine: where synonyms come from, the digests of weights to start from, of what
    is left out and of a stamp."""
    data = settled(spec.data)
    if any(stage.objective.views[1] > 1 for stage in spec.stages):
        augment, words = settle_synonyms(data.augment)
        own = data.clean.augment
        clean = data.clean if own is None else data.clean.model_copy(update={"augment": settle_synonyms(own)[0]})
        data = data.model_copy(update={"augment": augment, "clean": clean})
        if words:
            say(words)
    changes: dict[str, Any] = {} if data is spec.data else {"data": data}
    for name in ("pretrain", "clean"):
        stage = getattr(spec, name)
        if stage is not None and stage.start is not None and stage.start.path is not None:
            stage = stage.model_copy(update={"start": identified(stage.start, f"{name}.start")})
        if stage is not None and isinstance(line := stage.transform, Line):
            line = line.model_copy(update={"to": identified(line.to, f"{name}.transform.to")})
            stage = stage.model_copy(update={"transform": line})
        if stage is not None and (objective := identified_stamp(stage.objective)) != stage.objective:
            stage = stage.model_copy(update={"objective": objective})
        if stage is not getattr(spec, name):
            changes[name] = stage
    return spec.model_copy(update=changes) if changes else spec


def expand(loaded: Loaded) -> list[Point]:
    """The points that are known before any run; all errors of all points at once."""
    spec, source = loaded.spec, loaded.source
    sweep, search = spec.sweep, spec.sweep.search
    faults = _faults(sweep, source)
    points: list[Point] = []
    for arm in arms(sweep) if not faults else ():
        if isinstance(search, Grid):
            chosen: Iterable[dict[str, Any]] = arm.grid()
        else:
            first = search.trials if isinstance(search, Random) else min(search.trials, search.together)
            chosen = (arm.drawn(search.seed, trial) for trial in range(first))
        for trial in chosen:
            try:
                points.append(loaded.point(arm, trial))
            except ValidationError as error:
                tree = SpecTree(source.where(("sweep",)), loaded.tree(arm, trial))
                faults += [line for line in explain(error, tree, Spec) if line not in faults]
                if len(faults) > MOST:
                    break
    if faults:
        raise UserError("\n".join([f"{source.name}: {len(faults)} error{'s' * (len(faults) > 1)} in the sweep", *faults]))
    return points


def _faults(sweep: Sweep, source: SpecTree) -> list[str]:
    """What is wrong with the axes, before any point is made."""
    searched = not isinstance(sweep.search, Grid)
    faults: list[str] = []
    taken = {name for name in sweep.axes if is_path(name)}
    for name, axis in sweep.axes.items():
        where = f"{source.where(('sweep', name))}: sweep: "
        if not isinstance(axis, dict):
            faults += [where + fault for fault in _wrong_axis(name, axis, searched)]
            continue
        if is_path(name):  # it would be taken for one that the sweep leaves to choose, and dropped
            faults.append(
                f"{where}'{name}' is a field, which takes values or a range; give choices under a name without a dot"
            )
        if not axis:
            faults.append(f"{where}'{name}' has no choices; give at least one, NAME: {{path: value}}")
        for label, choice in axis.items():
            faults += [where + fault for fault in _wrong_choice(f"{name}: {label}", choice, searched, taken)]
        taken = taken.union(*({*choice.fields, *choice.sweep} for choice in axis.values()))
    if not faults and (count := size(sweep)) > sweep.limit:
        faults.append(
            f"{source.where(('sweep',))}: sweep: it expands to {count:,} combinations, more than sweep.limit = "
            f"{sweep.limit:,}; take values out, or raise the limit"
        )
    if not faults:
        faults += [
            f"{source.where(('sweep', name))}: sweep: '{path}' changes no training, so that its values would be one run; "
            "leave it out of the sweep, or give each value a study of its own"
            for name, axis in sweep.axes.items()
            if (path := idle(axis, name))
        ]
    if searched and not faults and (empty := next((arm for arm in arms(sweep) if not arm.axes), None)):
        words = ", ".join(f"{name} {label}" for name, label in empty.labels.items()) or "the sweep"
        faults.append(f"{source.where(('sweep',))}: sweep: {words} leaves nothing to search; sweep a field of clean")
    return faults


def _wrong_axis(name: str, axis: list[Any] | Range, searched: bool) -> Iterator[str]:
    if fault := _unknown(name):
        yield fault
    elif isinstance(axis, Range) and axis.points is None and not (searched and of_cleaning(name)):
        yield f"'{name}' is a range; give points, how many of it are taken"
    elif isinstance(axis, list) and not axis:
        yield f"'{name}' has no values; give at least one"


def _wrong_choice(what: str, choice: Choice, searched: bool, taken: set[str]) -> Iterator[str]:
    yield from (fault for path in choice.fields if (fault := _unknown(path)))
    for path in sorted(taken & {*choice.fields, *choice.sweep}):
        yield f"'{path}' is set by '{what}' and by another axis; leave one out"
    for path, axis in choice.sweep.items():
        yield from (f"'{what}': {fault}" for fault in _wrong_axis(path, axis, searched))
        if searched and not of_cleaning(path):
            yield f"'{what}': '{path}' is no field of the cleaning and can't be searched; cross it outside"


def _unknown(path: str) -> str:
    """What is wrong with the path of a field; '' if nothing is."""
    place: Place = tuple(path.split("."))
    if why := unswept(path.split(".")[0]):
        return f"no field '{path}'; it can't be swept: {why}"
    if place[-1] in field_names(Spec, place[:-1]) or field_names(Spec, place[:-1]) == [] and _is_mapping(place[:-1]):
        return ""
    return f"no field '{path}'{suggestion(path, paths(Spec))}"


def _is_mapping(place: Place) -> bool:
    """Whether a place holds names of the user's own, such as data.test."""
    return place in (("data", "test"), ("data", "pretrain", "sources"))


def schema() -> str:
    """The JSON schema of a spec, as committed in configs/spec.schema.json, for completion in editors."""
    tree = {"$schema": "http://json-schema.org/draft-07/schema#", **Spec.model_json_schema()}
    text = json.dumps(tree, indent=2).replace("#/$defs/", "#/definitions/").replace('"$defs"', '"definitions"')
    return text + "\n"
