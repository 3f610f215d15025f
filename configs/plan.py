"""What a study consists of: its runs in order, each known by the fingerprint of all that can change its result."""

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from configs.spec import Point, Spec
from configs.stage import Stage

FORMAT = 3  # raised when the same spec comes to mean another computation


@dataclass(frozen=True)
class Run:
    """One training: a pre-training, its untouched twin, or a cleaning that starts from a pre-training's result."""

    stage: str  # "pretrain" | "twin" | "clean"
    spec: Spec
    swept: tuple[tuple[str, Any], ...]
    start: "Run | None" = None

    @property
    def settings(self) -> Stage:
        """The section of the spec that this run carries out."""
        if self.stage != "clean":
            return self.spec.pretrain
        assert self.spec.clean is not None
        return self.spec.clean

    @property
    def decides(self) -> dict[str, Any]:
        """All that can change the result, as plain values; not the name, the machine, or what is measured."""
        spec = self.spec.model_dump(mode="json")
        data, attack = dict(spec["data"]), dict(spec["attack"])
        clean = data.pop("clean")
        for key in ("test", "made_by", "labels", "schemes"):
            data.pop(key)
        data["pretrain"].pop("expect")
        attack.pop("twin")
        if self.stage == "twin":
            attack = {}
        out = {"format": FORMAT, "seed": spec["seed"], "data": data, "attack": attack, "model": spec["model"]}
        out["pretrain"] = spec["pretrain"]
        if self.stage == "clean" or clean["held_out"] and clean["shards"] is None:
            data["clean"] = clean  # what is held out changes the pre-training
        if self.stage == "clean":
            out["clean"] = spec["clean"]
        return out

    @property
    def measured(self) -> dict[str, Any]:
        """What is measured and on what, as plain values; a finished run is measured again when it changes."""
        spec = self.spec.model_dump(mode="json")
        return {"measure": spec["measure"], "test": spec["data"]["test"], "labels": spec["data"]["labels"]}

    @property
    def fingerprint(self) -> str:
        """12 hex digits."""
        return blake2b(json.dumps(self.decides, sort_keys=True).encode(), digest_size=6).hexdigest()

    @property
    def folder(self) -> str:
        """The name of the run's folder."""
        return f"{self.stage}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """A few words for people: the stage and what the sweep sets for it."""
        if self.stage == "clean":
            mine = [(path, value) for path, value in self.swept if not path.startswith(("pretrain.", "attack.", "model."))]
            objective = f"{self.start.settings.objective.kind} -> " if self.start else ""
            objective += self.settings.objective.kind
        else:
            mine = [
                (path, value) for path, value in self.swept if path.startswith("pretrain.") and path != "pretrain.objective"
            ]
            objective = self.settings.objective.kind
        mine = [(path, value) for path, value in mine if not path.endswith("objective")]
        return " ".join([self.stage, objective, *(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in mine)])

    def card(self) -> dict[str, Any]:
        """The run as study.json lists it."""
        return {
            "run": self.folder,
            "stage": self.stage,
            "title": self.title,
            "start": self.start.folder if self.start else None,
            "pretrain_objective": self.spec.pretrain.objective.kind,
            "clean_objective": self.settings.objective.kind if self.stage == "clean" else None,
            "rate": self.settings.optimizer.rate,
            "seed": self.spec.seed,
            "swept": {k: v for k, v in self.swept if self.stage == "clean" or not k.startswith(("clean.", "data.clean."))},
        }


def runs(points: list[Point], stage: str | None = None) -> list[Run]:
    """All runs of a study, each once, a start before what starts from it; `stage` keeps those of one stage."""
    out: dict[str, Run] = {}
    for point in points:
        swept = tuple(point.swept.items())
        first = Run("pretrain", point.spec, swept)
        first = out.setdefault(first.folder, first)
        if point.spec.attack.twin == "each" or point.spec.attack.twin == "first" and point is points[0]:
            twin = Run("twin", point.spec, swept)
            out.setdefault(twin.folder, twin)
        if point.spec.clean is not None:
            last = Run("clean", point.spec, swept, first)
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
