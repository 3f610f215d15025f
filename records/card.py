"""card.json: what a reader wants to know of a run before its first step."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from records.folder import RecordFile
from records.study_json import StageName

Count = Annotated[int, Field(ge=0, le=10**15)]  # a larger one is damage


class Fact(NamedTuple):
    """A line of a card, for people."""

    label: str
    text: str


class Device(BaseModel, frozen=True):
    """What a process of the run computes on; `threads` of the CPU each."""

    name: str
    gpu: bool
    threads: Count


class AdamW(BaseModel, frozen=True):
    """The optimizer: its implementation, peak rate, warm-up in steps, weight decay, and where its moments come from."""

    implementation: str
    rate: float
    warmup: Count
    decay: float
    moments: str = "fresh"


class Card(RecordFile):
    """A run as its first launch found it; the last launch's machine. Batches and groups are in pairs."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())
    FILE: ClassVar[str] = "card.json"

    run: str
    stage: StageName
    title: str
    start: str | None = None
    transform: dict[str, Any] | None = None
    transformed: str | None = None  # what the transform did, in words, where its settings do not say it
    model: str
    parameters: Count
    objective: dict[str, Any]
    pairs: Count
    poisoned_pairs: Count
    epochs: Count
    steps: Count
    epoch_steps: Count
    batch: Count  # over all processes
    process_batch: Count
    micro_batch: Count | None = None
    whole_pictures: bool = False  # whether it divides captions alone, as BatchNorm's groups are larger
    optimizer: AdamW
    norm_group: Count | None = None  # of BatchNorm
    norms: str | None = None  # what becomes of BatchNorm, where that is not the usual
    trims_captions: bool
    precision: str
    loss_core: str
    loss_core_before: str | None = None  # of the steps before this launch, where it does not work here
    loss_core_fault: str | None = None  # why not
    zero: Count
    processes: Count
    device: Device
    data_digest: str
    files: dict[str, str] | None = None  # SHA-256 of the files that its spec names, by address
    left_out: str | None = None  # digest of the pairs that are left out of its data
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _of_format_4(cls, content: Any) -> Any:
        """Cards of before November 2026 said some of this in words; finished studies of that time are still read."""
        return _typed(content) if isinstance(content, dict) and "poisoned pairs" in content else content

    def facts(self) -> list[Fact]:
        """The whole card as lines for people, without the machine's (`machine_facts`)."""
        optimizer = self.optimizer
        lines: dict[str, Any] = {
            "starts from": self.start,
            "transform": self.transform,
            "transformed": self.transformed,
            "model": f"{self.model}, {self.parameters:,} parameters and the scale",
            "objective": self.objective,
            "pairs": f"{self.pairs:,}",
            "poisoned pairs": f"{self.poisoned_pairs:,}",
            "epochs": self.epochs,
            "steps": f"{self.steps:,} ({self.epoch_steps:,} an epoch)",
            "batch": f"{self.batch:,} pairs ({self.process_batch:,} a process)",
            "micro-batch": None if self.micro_batch is None else self._micro_batch(),
            "optimizer": f"{optimizer.implementation} AdamW, rate {optimizer.rate:g}, warm-up {optimizer.warmup} steps, "
            f"decay {optimizer.decay:g}",
            "moments": optimizer.moments if optimizer.moments != "fresh" else None,
            "BatchNorm groups": None if self.norm_group is None else f"{self.norm_group:,} pairs",
            "BatchNorm": self.norms,
            "captions": "up to their last end token" if self.trims_captions else "at full length",
            "precision": self.precision,
            "loss core": self.loss_core,
            "loss core before": self._loss_core_before(),
            "ZeRO stage": self.zero,
            "data digest": self.data_digest,
        }
        return list(_facts(lines))

    def _loss_core_before(self) -> str | None:
        if self.loss_core_before is None:
            return None
        return f"{self.loss_core_before}, which does not work here: {self.loss_core_fault}"

    def _micro_batch(self) -> str:
        if self.whole_pictures:
            return f"{self.micro_batch:,} captions; pictures whole, recomputed in the backward pass, for BatchNorm's groups"
        return f"{self.micro_batch:,} pairs"

    def machine_facts(self) -> list[Fact]:
        """The machine and the versions as lines for people."""
        threads = f"{self.device.threads} thread{'s' * (self.device.threads != 1)} a process"
        lines = {"device": f"{self.device.name}, {threads}", "processes": self.processes, "versions": self.versions}
        return list(_facts(lines))


def _facts(lines: dict[str, Any], prefix: str = "") -> Iterator[Fact]:
    """The lines that say something; nested ones by dotted labels."""
    for label, value in lines.items():
        if isinstance(value, dict):
            yield from _facts(value, f"{prefix}{label}.")
        elif value is not None:
            yield Fact(f"{prefix}{label}", str(value))


def _typed(words: dict[str, Any]) -> dict[str, Any]:
    """A card of before November 2026 as one of now; a field that can't be read is left out, and so refused."""

    def number(name: str, pattern: str) -> int | None:
        match = re.search(pattern, str(words.get(name, "")))
        return int(match[1].replace(",", "")) if match else None

    device = re.fullmatch(r"(.*), (\d{1,6}) threads a process", str(words.get("device", "")))
    adamw = re.fullmatch(r"(\S+) AdamW, rate (\S+), warm-up (\d+) steps, decay (\S+)", str(words.get("optimizer", "")))
    return {
        **words,
        "stage": str(words.get("run", "")).split("-")[0],
        "model": str(words.get("model", "")).split(",")[0],
        "parameters": number("model", r", ([\d,]+) parameters"),
        "poisoned_pairs": words["poisoned pairs"],
        "steps": number("steps", r"^([\d,]+)"),
        "epoch_steps": number("steps", r"\(([\d,]+) an epoch"),
        "batch": number("batch", r"^([\d,]+)"),
        "process_batch": number("batch", r"\(([\d,]+) a process"),
        "micro_batch": number("micro-batch", r"^([\d,]+)"),
        "norm_group": number("BatchNorm groups", r"^([\d,]+)"),
        "norms": words.get("BatchNorm"),
        "trims_captions": words.get("captions") != "at full length",
        "loss_core": words.get("pairwise core"),
        "zero": words.get("ZeRO stage"),
        "data_digest": words.get("data digest"),
        "device": device and {"name": device[1], "gpu": not device[1].endswith(" CPU"), "threads": device[2]},
        "optimizer": adamw
        and {
            "implementation": adamw[1], "rate": adamw[2], "warmup": adamw[3], "decay": adamw[4],
            "moments": words.get("moments") or "fresh",
        },
    }  # fmt: skip
