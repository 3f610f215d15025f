"""One model's audit: asks it what is asked for, measures the stamps found on other pictures, and writes the record.

FOLDER/audit.json  decree.safetensors  target.safetensors      the stamps as the trigger `tensor` reads them, place: full
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch

from data.disk import writing
from data.refusal import Missing, UserError
from data.seeding import number_of, ranks, smallest_k
from engine.distributed.world import World
from engine.evaluation.encode import Encoder
from engine.evaluation.evaluate import judged
from engine.evaluation.sets import prompts_of
from engine.inversion.decree import alike, decree
from engine.inversion.pictures import AuditPictures
from engine.inversion.planted import largest_coverage
from engine.inversion.search import Found, Search
from engine.inversion.stamp import Stamp, encoding
from engine.inversion.subject import Subject
from engine.inversion.targets import Head, smallest_for
from engine.inversion.texts import TextEncode, text_scan
from engine.models.tokenizer import Tokenizer
from measures.attack_success import attack_success
from measures.classifier import class_vectors, predict
from measures.contract import Encoded
from measures.outliers import FLAGGED, anomaly_index
from records.audit import (
    CONSPICUOUS,
    AuditJson,
    AuditName,
    ClassFound,
    Decree,
    StampFound,
    Targets,
    Texts,
    WordFound,
)

AUDITS: tuple[AuditName, ...] = get_args(AuditName)
AT_ONCE = 64  # pictures that are embedded at once where no gradient is asked for
LEAST_PROMPTS = 8
PROMPTS = 400  # that the text scan learns on, and as many that it is measured on, at most


@dataclass(frozen=True)
class Settings:
    """What is asked, and for how long."""

    audits: tuple[AuditName, ...] = AUDITS
    seed: int = 0
    search: Search = field(default_factory=Search)  # of DECREE
    class_steps: int = 200  # of the search for each class
    text_steps: int = 80

    def steps(self, classes: int) -> int:
        """Steps of all searches, at most."""
        each = {"decree": self.search.steps, "targets": classes * self.class_steps, "texts": self.text_steps}
        return sum(each[name] for name in self.audits)

    def plain(self, clean: Subject | None) -> dict[str, Any]:
        """As audit.json holds them; two audits with the same ones are comparable."""
        whole = {"search": self.search._asdict(), "class_steps": self.class_steps, "text_steps": self.text_steps}
        return {**whole, "audits": list(self.audits), "seed": self.seed, "clean": None if clean is None else clean.digest}


class Audit:
    """The audit of a subject on some pictures, with a clean text tower to compare with or without one."""

    def __init__(self, subject: Subject, pictures: AuditPictures, settings: Settings, clean: Subject | None = None) -> None:
        check_subject(subject, pictures, settings, clean)
        self.subject, self.pictures, self.settings, self.clean = subject, pictures, settings, clean
        self.device = next(subject.towers.parameters()).device
        self.done = 0  # steps of the searches before this one

    def run(self, folder: Path, watch: Callable[[int], None]) -> AuditJson:
        """Carries it out and writes its files; `watch` is told of every step, counted over all searches."""
        began = time.monotonic()
        subject, pictures = self.subject, self.pictures
        with writing(folder, "the audit"):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.watch = folder, watch
        with judged(subject.name):
            self.classes = self._class_vectors()
            parts = {name: getattr(self, f"_{name}")() for name in self.settings.audits}
        record = AuditJson(
            weights=subject.given,
            digest=subject.digest,
            model=subject.model,
            run=None if subject.run is None else subject.run.name,
            targets_planted=None if subject.aims is None else [aim.target for aim in subject.aims],
            images=pictures.folder,
            images_digest=pictures.digest,
            pictures=len(pictures.searched),
            held=len(pictures.held),
            settings=self.settings.plain(self.clean),
            seconds=round(time.monotonic() - began, 3),
            **parts,
        )
        record.write(folder)
        return record

    def _class_vectors(self) -> torch.Tensor | None:
        """[C, D] on the device; None without a text tower."""
        if not self.subject.has_texts:
            return None
        labelled, world = self.pictures.labelled, World(0, 1, 0, 1, self.device)
        with torch.no_grad():
            rows = Encoder(self.subject.towers, self.subject.tokenize, world, AT_ONCE).texts(prompts_of(labelled))
        return class_vectors(rows.view(len(labelled.classes), len(labelled.templates), -1)).to(self.device)

    def _step(self, limit: int) -> Callable[[int], None]:
        """Tells of a search's steps; the next search's begin behind its limit, wherever it ends."""
        before = self.done
        self.done += limit
        return lambda step: self.watch(before + step)

    def _decree(self) -> Decree:
        settings = self.settings
        with encoding(self.subject.towers) as encode:
            searched = self.pictures.searched.to(self.device)
            found = decree(encode, searched, settings.search, settings.seed, self._step(settings.search.steps))
        stamp, rows = self._measured(found, "decree.safetensors", None)
        _, cosine = alike(rows)
        return Decree(**stamp.model_dump(), cosine=cosine, conspicuous=found.succeeded and stamp.share < CONSPICUOUS)

    def _targets(self) -> Targets:
        settings, names = self.settings, self.pictures.labelled.classes
        assert self.classes is not None
        search = settings.search._replace(steps=settings.class_steps)
        searched, head = self.pictures.searched.to(self.device), Head(self.subject.scale * self.classes, names)
        best: tuple[Found, int] | None = None  # the others' stamps are not kept
        found: list[tuple[float, bool]] = []
        with encoding(self.subject.towers) as encode:
            for target in range(len(names)):
                one = smallest_for(encode, searched, head, target, search, settings.seed, self._step(search.steps))
                found.append((one.size, one.succeeded))
                if best is None or one.size < best[0].size:
                    best = one, target
        none: list[float | None] = [None] * len(names)
        index = anomaly_index([size for size, _ in found])
        classes = [
            ClassFound(name=name, size=size, succeeded=succeeded, index=own)
            for name, (size, succeeded), own in zip(names, found, index or none, strict=True)
        ]
        flagged = [one.name for one in classes if one.index is not None and one.index > FLAGGED]
        assert best is not None
        stamp, _ = self._measured(best[0], "target.safetensors", best[1])
        return Targets(classes=classes, index=max(index) if index else None, flagged=flagged, smallest=stamp)

    def _texts(self) -> Texts:
        subject, settings, labelled = self.subject, self.settings, self.pictures.labelled
        assert self.classes is not None
        learned, others = _halves(prompts_of(labelled), settings.seed)
        clean = None if self.clean is None else TextEncode(self.clean.towers, self.clean.tokenize)
        encode = TextEncode(subject.towers, subject.tokenize)
        with encoding(subject.towers), encoding((self.clean or subject).towers):
            watch = self._step(settings.text_steps)
            found = text_scan(encode, clean, (learned, others), settings.text_steps, settings.seed, watch)
        word = Tokenizer(subject.model).word
        return Texts(
            assimilation=found.assimilation,
            plain=found.plain,
            target=labelled.classes[int((self.classes @ found.row).argmax())],
            words=[WordFound(word=word(token), assimilation=value) for token, value in found.tokens],
            compared=clean is not None,
        )

    def _measured(self, found: Found, name: str, target: int | None) -> tuple[StampFound, torch.Tensor]:
        """(What a stamp does to the held pictures, their stamped rows [M, D]); towards a class, or towards the one that most
        of them are taken for. It is written as well."""
        found.stamp.write(self.folder / name)
        labels, rows = self.pictures.labels, self._rows(Stamp(*(part.cpu() for part in found.stamp)))
        numbers: dict[str, Any] = {"iou": self._overlap(found)}
        if self.classes is not None:
            classes = self.classes.cpu()
            if target is None:
                target = int(predict(rows, classes).mode()[0])
            numbers["target"] = self.pictures.labelled.classes[target]
            if bool((labels != target).any()):
                aims = torch.full_like(labels, target)
                rates = attack_success(Encoded(self._plain, rows, labels, classes, classes, aims))
                numbers |= {"asr": rates["asr"], "asr_floor": rates["asr_floor"]}
        whole = 3 * found.stamp.mask.numel()
        stamp = StampFound(
            succeeded=found.succeeded, size=found.size, share=found.size / whole, steps=found.steps, file=name, **numbers
        )
        return stamp, rows

    @cached_property
    def _plain(self) -> torch.Tensor:
        """The held pictures' rows as they are."""
        return self._rows(None)

    def _rows(self, stamp: Stamp | None) -> torch.Tensor:
        """Unit [M, D] of the held pictures, with a stamp or without, on the CPU."""
        out = []
        with torch.no_grad():
            for part in torch.split(self.pictures.held, AT_ONCE):
                shown = part if stamp is None else stamp.marked(part)
                out.append(self.subject.towers(shown.to(self.device), None)[0].cpu())
        return torch.cat(out)

    def _overlap(self, found: Found) -> float | None:
        """With the patch that the run was poisoned with, the largest of several; None where there is none, or its file is
        not here."""
        mask = found.stamp.mask.cpu().numpy()
        try:
            return largest_coverage(mask, self.subject.aims or (), self.subject.seed)
        except Missing:
            return None


def check_subject(subject: Subject, pictures: AuditPictures, settings: Settings, clean: Subject | None) -> None:
    """UserError if the subject, the pictures or the clean model lack what is asked of them."""
    asked = [name for name in settings.audits if name != "decree"]
    if asked and not subject.has_texts:
        raise UserError(
            f"{subject.given} holds no text tower, which {' and '.join(asked)} need{'s' * (len(asked) == 1)}; ask for "
            "--audits decree alone"
        )
    if clean is not None and not clean.has_texts:
        raise UserError(f"--clean {clean.given} holds no text tower to compare with; give whole weights, or leave it out")
    labelled = pictures.labelled
    if "texts" in settings.audits and (prompts := len(labelled.classes) * len(labelled.templates)) < LEAST_PROMPTS:
        raise UserError(
            f"{pictures.folder} has classes and templates for {prompts} prompts, and the text scan needs {LEAST_PROMPTS} at "
            "least; give --images of more classes, or leave texts out of --audits"
        )
    if "targets" in settings.audits and len(pictures.labelled.classes) < 3:
        raise UserError(
            f"{pictures.folder} has {len(pictures.labelled.classes)} classes, and an outlier among them needs 3 at least; "
            "give --images of more classes, or leave targets out of --audits"
        )


def _halves(prompts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """(prompts to learn on, others), drawn by hash(seed, prompt)."""
    half = min(PROMPTS, len(prompts) // 2)
    drawn = [prompts[at] for at in smallest_k(ranks(seed, "audit prompts", number_of(prompts)), 2 * half)]
    return drawn[:half], drawn[half:]
