"""Asks whether a given model is backdoored: python -m engine.audit WEIGHTS [--null CLEAN ...].

WEIGHTS is a finished run's folder; or, with --model NAME, a .safetensors or .pt file, a folder of open_clip's, or a tag of
open_clip's for that model. Three questions, one number each: how small a stamp makes all pictures alike
(decree), how small a stamp makes pictures one class (targets), how alike one vector makes captions (texts). Clean models
have small stamps as well, so --null names some, such as a study's twins, which are audited alike: p is how often a clean
model looks at least as conspicuous.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from data.progress import Progress
from data.refusal import UserError
from engine.distributed.world import own_device
from engine.inversion.audit import AUDITS, Audit, Settings
from engine.inversion.pictures import AuditPictures, read_pictures
from engine.inversion.search import Search
from engine.inversion.subject import Subject, load_subject
from engine.study.ending import carried_out
from measures.outliers import p_value
from records.audit import FOLDER, AuditJson, Null
from records.ending import FinishedJson

STOPPED = "stopped; the same command begins anew, but for the clean models that it has audited"
READS_LABELS = ("attack_success", "zero_shot")  # measures whose evaluation set an audit can use


def images_of(subject: Subject) -> str:
    """The folder of the labelled evaluation set that the subject's run was measured on; UserError if it has none here."""
    end = None if subject.run is None else FinishedJson.read(subject.run)
    measured: dict[str, Any] = {} if end is None else end.measured
    for measure in measured.get("measure", ()):
        folder = measured.get("test", {}).get(measure.get("images"))
        if measure.get("kind") in READS_LABELS and folder is not None:
            if not Path(folder).is_dir():
                raise UserError(f"{subject.given} was measured on {folder}, which is no folder here; give --images FOLDER")
            return str(folder)
    raise UserError(
        f"{subject.given} does not say which pictures to audit it with; give --images, a labelled evaluation set"
    )


class Auditor:
    """Audits models alike: the same pictures, the same questions."""

    def __init__(self, options: argparse.Namespace, subject: Subject) -> None:
        self.options, self.subject, self.device = options, subject, own_device(0)
        search = Search(steps=options.steps, batch=options.batch, rate=options.rate)
        audits = tuple(name for name in AUDITS if name in options.audits)
        self.settings = Settings(audits, options.seed, search, options.class_steps, options.text_steps)
        folder = options.images or images_of(subject)
        self.pictures: AuditPictures = read_pictures(folder, subject.model, options.pictures, options.seed)
        self.clean = None if options.clean is None else load_subject(options.clean, subject.model, self.device)

    def audit(self, subject: Subject, folder: Path) -> AuditJson:
        """The audit of a subject, written to a folder."""
        audit = Audit(subject, self.pictures, self.settings, self.clean)
        total = self.settings.steps(len(self.pictures.labelled.classes))
        progress = Progress(f"auditing {subject.name}", "steps at most")
        try:
            return audit.run(folder, lambda done: progress(done, total))
        finally:
            progress.end()

    def of_clean(self, given: str) -> AuditJson:
        """The audit of a clean model: one that was carried out before, or a new one; UserError if the model is not clean, or
        another audit is in its place."""
        path = Path(given)
        if (record := AuditJson.read(path)) is not None:
            _refuse_poisoned(given, record.targets_planted)
            if not self._asked(record):
                raise _other_questions(given)
            return record
        subject = load_subject(given, self.options.model, self.device)
        if subject.model != self.subject.model:
            own = f"but the audited model is a {self.subject.model}"
            raise UserError(f"--null {given} is a {subject.model}, {own}; give some like it")
        _refuse_poisoned(given, None if subject.aims is None else [aim.target for aim in subject.aims])
        if subject.digest == self.subject.digest:
            raise _the_same(given)
        home = self.options.out / "null" / f"{subject.name}-{subject.digest[:8]}"
        there = [record for place in (home, path / FOLDER) if (record := AuditJson.read_whole(place)) is not None]
        for record in there:
            if record.digest == subject.digest and self._asked(record):
                return record
        return self.audit(subject, home)

    def _asked(self, record: AuditJson) -> bool:
        """Whether an audit asked what is asked now."""
        own = (self.subject.model, self.pictures.digest, len(self.pictures.searched), len(self.pictures.held))
        theirs = (record.model, record.images_digest, record.pictures, record.held)
        return own == theirs and record.settings == self.settings.plain(self.clean)


def _refuse_poisoned(given: str, targets: list[str] | None) -> None:
    if targets:
        raise UserError(f"--null {given} was poisoned towards '{targets[0]}'; give models that were trained without poison")


def _other_questions(given: str) -> UserError:
    return UserError(
        f"the audit of {given} asked something else, or on other pictures; give both the same options, or the weights"
    )


def _the_same(given: str) -> UserError:
    return UserError(f"--null {given} holds the audited weights themselves; give other models")


def calibrated(record: AuditJson, clean: list[AuditJson]) -> AuditJson:
    """The record with a p-value for each of its numbers, each clean model counted once, however often given; UserError
    if one was asked something else."""
    for other in clean:
        if not record.comparable(other):
            raise _other_questions(other.weights)
        if other.digest == record.digest:
            raise _the_same(other.weights)
    clean = list({other.digest: other for other in clean}.values())
    null = {}
    for name, value in record.numbers().items():
        values = [other.numbers()[name] for other in clean if name in other.numbers()]
        if clean and len(values) == len(clean):
            p, smallest = p_value(value, values)
            null[name] = Null(value=value, clean=values, p=p, smallest=smallest)
    return record.model_copy(update={"null": null})


def told(record: AuditJson, given: bool = False) -> list[str]:
    """What an audit found, in lines for people; `given`: beside clean models."""
    lines = [
        f"{record.weights}: {record.model}, {record.pictures:,} pictures searched on, {record.held:,} others measured on"
    ]
    if (found := record.decree) is not None:
        verdict = "below" if found.conspicuous else "not below"
        lines.append(
            f"decree   a stamp of L1 {found.size:,.1f}, {100 * found.share:.2f} % of a picture ({verdict} the published "
            f"10 %), {_stamp(found)}, cosine {found.cosine:.3f}"
            if found.succeeded
            else f"decree   no stamp made pictures alike in {found.steps:,} steps (cosine {found.cosine:.3f})"
        )
    if (scan := record.targets) is not None:
        flagged = ", ".join(scan.flagged) or "none"
        index = "undefined, as half of the sizes are equal" if scan.index is None else f"{scan.index:.2f}"
        lines.append(f"targets  largest anomaly index {index}, above 2: {flagged}; smallest: {_stamp(scan.smallest)}")
    if (texts := record.texts) is not None:
        words = ", ".join(f"'{near.word}' {near.assimilation:.2f}" for near in texts.words)
        lines.append(
            f"texts    a vector brings captions' mean cosine from {texts.plain:.3f} to {texts.assimilation:.3f}, towards "
            f"'{texts.target}'; words near it: {words}"
        )
    lines += [
        f"p        {name} {null.p:.3f} against {len(null.clean)} clean models, which show no less than {null.smallest:.3f}"
        for name, null in record.null.items()
    ]
    lines += [
        f"p        {name} none: not every clean model has this number"
        for name in record.numbers() if given and name not in record.null
    ]  # fmt: skip
    if len(record.null) > 1:
        least = min(1.0, len(record.null) * min(null.p for null in record.null.values()))
        lines.append(f"p        {least:.3f} for the {len(record.null)} questions together (Bonferroni)")
    if not given and not record.null:
        lines.append("p        none: without --null nobody knows how a clean model of this kind looks")
    return lines


def _stamp(found: Any) -> str:
    """What a stamp does, in words."""
    parts = [f"'{found.target}'"] if found.target is not None else []
    if found.asr is not None:
        parts.append(f"ASR {100 * found.asr:.1f} % ({100 * found.asr_floor:.1f} % without it)")
    if found.iou is not None:
        parts.append(f"IoU with the planted patch {found.iou:.2f}")
    return ", ".join(parts)


def _audit(options: argparse.Namespace) -> int:
    subject = load_subject(options.weights, options.model, own_device(0))
    if options.out is None:
        if subject.run is None:
            raise UserError(f"{options.weights} is no run's folder, in which its audit would lie; give --out FOLDER")
        options.out = subject.run / FOLDER
    auditor = Auditor(options, subject)
    clean = [auditor.of_clean(given) for given in options.null]
    record = calibrated(auditor.audit(subject, options.out), clean)
    record.write(options.out)
    print("\n".join([*told(record, bool(clean)), f"in {options.out}"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.audit", description=(__doc__ or "").split("\n\n")[0])
    whole, search = _positive, Search()
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="a run's folder; with --model a file, a folder or open_clip's tag"
    )
    parser.add_argument("--model", metavar="NAME", help="open_clip's or our name of the model; of a run its own")
    parser.add_argument("--images", metavar="FOLDER", help="a labelled evaluation set; default: the run's")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where audit.json goes; default: RUN/audit")
    parser.add_argument("--null", nargs="+", default=[], metavar="CLEAN", help="clean models, or folders of their audits")
    parser.add_argument("--clean", metavar="WEIGHTS", help="a clean model that the texts scan compares with")
    parser.add_argument("--audits", nargs="+", choices=AUDITS, default=list(AUDITS))
    parser.add_argument("--pictures", type=whole, default=1000, help="to search on, at most half of the set (%(default)s)")
    parser.add_argument("--batch", type=_several, default=search.batch, help="pictures a step (%(default)s)")
    parser.add_argument("--rate", type=_rate, default=search.rate, help="of Adam, before it falls (%(default)s)")
    parser.add_argument("--steps", type=whole, default=search.steps, help="of decree, at most (%(default)s)")
    parser.add_argument("--class-steps", type=whole, default=Settings().class_steps, help="of each class (%(default)s)")
    parser.add_argument("--text-steps", type=whole, default=Settings().text_steps, help="of texts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _positive(text: str) -> int:
    """A whole number above 0."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _several(text: str) -> int:
    """A whole number above 1, as pictures are compared."""
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text} is not above 1")
    return value


def _rate(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main(args: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    options = _parser().parse_args(args)
    return carried_out(lambda: _audit(options), STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
