"""A spec: one experiment. This file composes the sections; each stands beside the function that it configures."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from configs.explain import explain, field_names, suggestion
from configs.machine import Machine
from configs.model import Model
from configs.section import Section
from configs.source import Place, Source, override, put, read_source
from configs.stage import Stage
from data.augment import settled
from data.pipeline import Data
from data.poison import Attack
from data.refusal import Refusal
from measures import AnyMeasure


class Spec(Section):
    """Data, attack, model, a stage that pre-trains, a stage that cleans its result, what is measured, the machine."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the study's folder under runs/")
    question: str | None = Field(None, description="what the study asks, printed on its report")
    seed: int = Field(0, ge=0)
    data: Data
    attack: Attack
    model: Model
    pretrain: Stage
    clean: Stage | None = None
    measure: tuple[AnyMeasure, ...] = Field(min_length=1)
    sweep: dict[str, list[Any]] = Field({}, description="path: values; the study is the product of all of them")
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _pretraining_has_no_start(self) -> "Spec":
        if "start" in self.pretrain.objective.needs:
            raise ValueError(
                f"pretrain.objective is {self.pretrain.objective.kind}, which compares with the model that it starts from; "
                "use it in clean, which has one"
            )
        return self

    @model_validator(mode="after")
    def _sets_are_named(self) -> "Spec":
        for measure in self.measure:
            if measure.images not in self.data.test:
                known = ", ".join(self.data.test) or "none"
                raise ValueError(f"measure.images is '{measure.images}', but data.test names {known}; name one of them")
        return self


class Point(Section):
    """One point of a sweep: the values it sets and the spec that they make, without a sweep of its own."""

    swept: dict[str, Any]
    spec: Spec


def load(
    path: str | Path, settings: list[str] = [], say: Callable[[str], None] = lambda words: None
) -> tuple[Spec, list[Point]]:
    """The spec and the points of its sweep in order; a Refusal lists every error at once. What a spec leaves to the machine
    is settled here, so that fingerprints tell it, and said."""
    source = read_source(path)
    for setting in settings:
        override(source, setting)
    try:
        spec = Spec.model_validate(source.values)
    except ValidationError as error:
        lines = explain(error, source, Spec)
        raise Refusal("\n".join([f"{path}: {len(lines)} error{'s' * (len(lines) > 1)} in the spec", *lines])) from None
    points = expand(spec, source)
    said: dict[str, None] = {}
    settled_points = [Point.model_construct(swept=one.swept, spec=_settled(one.spec, said)) for one in points]
    for words in said:
        say(words)
    return _settled(spec, {}), settled_points


def _settled(spec: Spec, said: dict[str, None]) -> Spec:
    """The spec with what it leaves to the machine; adds what there is to say of it."""
    if not any(stage and stage.objective.views[1] > 1 for stage in (spec.pretrain, spec.clean)):
        return spec
    augment, words = settled(spec.data.augment)
    if words:
        said[words] = None
    return spec.model_copy(update={"data": spec.data.model_copy(update={"augment": augment})})


def expand(spec: Spec, source: Source) -> list[Point]:
    """The product of the swept values, the first path varying slowest; all errors of all points at once."""
    faults: list[str] = []
    for path, values in spec.sweep.items():
        place: Place = tuple(path.split("."))
        names = field_names(Spec, place[:-1])
        if place[-1] not in names or place[0] in ("sweep", "name", "machine"):
            hint = suggestion(str(place[-1]), names) if place[-1] not in names else "; it can't be swept"
            faults.append(f"{source.where(('sweep', path))}: sweep: no field '{path}'{hint}")
        elif not values:
            faults.append(f"{source.where(('sweep', path))}: sweep: '{path}' has no values; give at least one")
    points: list[Point] = []
    for point in product(*spec.sweep.values()) if not faults else ():
        tree = {**source.values, "sweep": {}}
        swept = dict(zip(spec.sweep, point, strict=True))
        for path, value in swept.items():
            put(tree, tuple(path.split(".")), value)
        try:
            points.append(Point.model_construct(swept=swept, spec=Spec.model_validate(tree)))
        except ValidationError as error:
            for line in explain(error, Source(source.where(("sweep",)), tree), Spec):
                if line not in faults:
                    faults.append(line)
    if faults:
        raise Refusal("\n".join([f"{source.name}: {len(faults)} error{'s' * (len(faults) > 1)} in the sweep", *faults]))
    return points


def schema() -> str:
    """The JSON schema of a spec, as committed in configs/spec.schema.json, for completion in editors."""
    tree = {"$schema": "http://json-schema.org/draft-07/schema#", **Spec.model_json_schema()}
    text = json.dumps(tree, indent=2).replace("#/$defs/", "#/definitions/").replace('"$defs"', '"definitions"')
    return text + "\n"
