"""A submission: a finished study whose every record is known to be as it was written, in its folder or packed.

What is verified of each run: its folder's name is the fingerprint of its spec.json; study.json says of it what that says;
the model that it starts from has the same spec, as far as it goes; it ended; its card and its end hold what their digests
say; every line of its journal does, and its length is that of its end; what was found of it beside its training is of its
weights and says what its own values give (report/findings.py). Whoever makes up a whole study and its digests is not found
out by this: numbers are evidence only with who ran them, and for whoever runs the command again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from data.refusal import UserError
from records.card import Card
from records.ending import FinishedJson, verify_files
from records.json_file import has_digest, write_whole
from records.lines import first_unsealed
from records.rows import FILE
from records.spec_json import SPEC, control_of, fingerprint, of_cleaning, read_decides, stage_of
from records.study_json import LeftOut, RunEntry, StudyJson
from report.findings import finding_faults
from report.load import Record, Study, read_study
from report.packed import RECORDS, SUFFIX, pack, unpacked

MOST = 20  # faults that are told


class _Kind(BaseModel):
    model_config = ConfigDict(extra="ignore")
    kind: str


class _Optimizer(BaseModel):
    model_config = ConfigDict(extra="ignore")
    rate: float | None = None


SHARE = re.compile(r"(\w+_)?(top\d+|asr\d*|[rR]\d+)(_\w+)?")  # numbers that are shares of pictures, by their names


class StageSpec(BaseModel):
    """Of a training's section in spec.json what a report needs."""

    model_config = ConfigDict(extra="ignore")
    objective: _Kind
    optimizer: _Optimizer
    transform: _Kind | None = None
    start: dict[str, Any] | None = None


class Decided(BaseModel):
    """A run's spec.json: what a report needs of it, and the whole."""

    model_config = ConfigDict(extra="ignore")
    seed: int
    data: dict[str, Any]
    attack: dict[str, Any]
    model: dict[str, Any]
    pretrain: StageSpec | None = None
    clean: StageSpec | None = None
    whole: dict[str, Any]


class Submission(NamedTuple):
    """A verified study; `path` is where it was given, `decided` by run."""

    path: Path
    study: Study
    decided: dict[str, Decided]


def stem(path: Path) -> str:
    """The name of a study's folder or of its packed file, without what says that it is packed."""
    return path.resolve().name.removesuffix(SUFFIX)


def report_folder(path: Path) -> Path:
    """Where the report of a study lies: in its folder, or beside where the command is given if the study is packed."""
    return Path(f"{stem(path)}-report") if path.is_file() else path / "report"


def open_study(path: Path) -> Study:
    """The study in a folder, as far as it has come, or packed, which is verified. Raises UserError."""
    return read_submission(path).study if path.is_file() else read_study(path)


def read_submission(path: Path) -> Submission:
    """The study in a folder or packed. Raises UserError that names each file that is not as it was written."""
    if not path.is_file():
        return _verified(path)
    with unpacked(path) as folder:
        study, decided = _verified(folder)[1:]
    return Submission(path, Study(path, study.plan, study.records, study.probes), decided)


def write_packed(folder: Path, out: Path) -> str:
    """Packs a study's folder into a file; returns the line to print. Raises UserError."""
    if not out.name.endswith(SUFFIX) or folder.is_file():
        raise UserError(f"--pack {folder} {out}: expected a study's folder and a file that ends in {SUFFIX}; give both")
    study = read_submission(folder).study
    runs = [record.run.run for record in (*study.records, *study.probes)]
    content = pack(folder, runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, content)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}); give another file") from error
    return f"{out}, with {len(runs):,} runs in {len(content):,} bytes"


def _verified(folder: Path) -> Submission:
    study, decided, faults = read_study(folder), dict[str, Decided](), list[str]()
    faults += _undigested(folder / StudyJson.FILE)
    records = [*study.records, *study.probes]
    names = [record.run.run for record in records]
    faults += [f"{folder / StudyJson.FILE} names {name} twice" for name in sorted(set(names)) if names.count(name) > 1]
    for record in records:
        try:
            decided[record.run.run] = _decided(folder / record.run.run)
            faults += _faults(folder / record.run.run, record)
        except UserError as error:
            faults.append(error.fault)
    ends = ((record.run, record.end) for record in study.records if record.run.stage == "clean")
    cleaned = {run.run: end.weights for run, end in ends if isinstance(end, FinishedJson)}
    runs = {record.run.run: record for record in records}
    for record in records:
        if (own := decided.get(record.run.run)) is not None:
            faults += finding_faults(folder / record.run.run, record, own.whole, runs)
        faults += _misnamed(folder, record.run, names, decided)
        faults += _misprobed(folder, record.run, decided, cleaned)
    if faults := list(dict.fromkeys(faults)):
        told = faults[:MOST] + ([f"{len(faults) - MOST:,} more faults"] if len(faults) > MOST else [])
        raise UserError("\n".join(f"{fault}; {folder} is not taken until that is put right" for fault in told))
    return Submission(folder, study, decided)


def _decided(folder: Path) -> Decided:
    """What decides the run in a folder. Raises UserError."""
    whole = read_decides(folder)
    if whole is None:
        raise UserError(f"{folder / SPEC} is missing")
    try:
        decided = Decided.model_validate_json(json.dumps({**whole, "whole": whole}))  # refuses halves of letters, too
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{folder / SPEC} does not decide a run ({where}: {error.errors()[0]['msg']})") from None
    if not folder.name.startswith(f"{stage_of(whole)}-") or len(folder.name.rpartition("-")[2]) != 12:
        raise UserError(f"{folder} is not named by its stage and the fingerprint of its {SPEC}")
    return decided


def _faults(folder: Path, record: Record) -> Iterator[str]:
    """What is not as it was written, of a run's files. Raises UserError too."""
    yield from record.faults
    if record.damaged:
        yield f"{folder / FILE} is damaged: {record.damaged:,} of its lines are not as they were written"
    if record.end is None and not record.faults:
        yield f"{folder / FinishedJson.FILE} is missing: the run has not ended"
    verify_files(folder, SPEC, Card.FILE)
    for name in RECORDS:
        yield from _undigested(folder / name) if not record.faults else ()
    for row in record.measures:
        numbers = row.numbers()
        wrong = [f"{name} {rate:g}" for name, rate in numbers.items() if SHARE.fullmatch(name) and not 0 <= rate <= 1]
        if (others := numbers.get("others", 0.0)) > numbers.get("pictures", others) or others < 0:
            wrong.append(f"others {others:g}")
        if wrong:
            yield f"{folder / FILE} says at epoch {row.epoch:g} {wrong[0]}, which is no share of its pictures"
            break
    line = first_unsealed((folder / FILE).read_bytes()) if (folder / FILE).is_file() else 1
    if line is not None:
        yield f"{folder / FILE} has no digest in its line {line:,}, so it can't be verified"


def _undigested(path: Path) -> list[str]:
    if path.is_file() and not has_digest(path.read_bytes()):
        return [f"{path} holds no digest, so it can't be verified"]
    return []


def _misnamed(folder: Path, run: RunEntry, names: list[str], decided: dict[str, Decided]) -> Iterator[str]:
    """What study.json says of a run that its spec.json does not, and a start that is of another spec."""
    if (own := decided.get(run.run)) is None:
        return
    stage = own.clean if run.stage == "clean" else own.pretrain
    control = control_of(own.whole)
    facts: dict[str, Any] = {"stage": stage_of(own.whole), "seed": own.seed, "control": control}
    if stage is not None:
        facts["rate"] = stage.optimizer.rate
    if own.pretrain is not None:
        facts["pretrain_objective"] = own.pretrain.objective.kind
    if own.clean is not None:
        facts["clean_objective"] = own.clean.objective.kind
    facts["without"] = _left_out(own.whole, run)
    for name, value in facts.items():
        if getattr(run, name) != value:
            yield f"{folder / StudyJson.FILE} says {name} {getattr(run, name)!r} of {run.run}, whose {SPEC} says {value!r}"
    yield from _misswept(folder, run, own.whole)
    if own.clean is None or own.pretrain is None:
        return
    start = decided.get(run.start or "")
    if run.start not in names:
        yield f"{folder / StudyJson.FILE} does not name {run.start}, from which {run.run} starts"
        return
    stage_begun, but = ("twin", ("attack", "start")) if control == "twin" else ("pretrain", ())
    if start is not None and (trained(start, *but) != trained(own, *but) or stage_of(start.whole) != stage_begun):
        yield f"{folder / run.run / SPEC} is of another pre-training than that of {run.start}, from which the run starts"


def _misswept(folder: Path, run: RunEntry, whole: dict[str, Any]) -> Iterator[str]:
    """Fields of the spec that study.json says were swept to a value that the run's spec.json does not have, or that concern
    the cleaning and do not. What a named axis calls its choices is for the submitter to say."""
    of = f"of {run.run}"
    for path, value in run.swept.items():
        told = "." in path and not (run.after and of_cleaning(path))  # a probe is told by its cleaning's settings
        if told and (other := _other(value, whole, path.split("."))) is not None:
            yield f"{folder / StudyJson.FILE} says {path} {value!r} {of}, whose {SPEC} says {other!r}"
    for path in run.cleaning:
        if "." in path and not of_cleaning(path):
            yield f"{folder / StudyJson.FILE} says {of} that {path} concerns its cleaning alone"


def _other(value: Any, there: Any, path: list[str]) -> Any:
    """What stands at a path of plain values where that is another word or number than `value`, or than one in it; None where
    it is the same, not told, or written in another form."""
    if path:
        return _other(value, there.get(path[0]), path[1:]) if isinstance(there, dict) else None
    if isinstance(value, dict):
        others = (_other(inner, there, [name]) for name, inner in value.items())
        return next((other for other in others if other is not None), None)
    plain = isinstance(value, bool | int | float | str) and isinstance(there, bool | int | float | str)
    alike = isinstance(value, str) == isinstance(there, str)
    return there if plain and alike and value != there else None


def _misprobed(
    folder: Path, run: RunEntry, decided: Mapping[str, Decided], cleaned: Mapping[str, str | None]
) -> Iterator[str]:
    """A run that is said to probe a cleaned model and does not start from it, or starts from one and is said to be no probe:
    either would be counted as what it is not. `cleaned` are the weights of finished cleanings."""
    probe, own = run.after, decided.get(run.run)
    if own is None:
        return
    of = run.start if probe is None or probe.twin else probe.of
    if (probe is not None) != (run.start in cleaned) or probe is not None and (of != run.start or probe.of not in cleaned):
        told = None if probe is None else probe.model_dump()
        yield f"{folder / StudyJson.FILE} says after {told!r} of {run.run}, which starts from {run.start}"
    elif probe is not None and ((own.clean and own.clean.start) or {}).get("digest") != cleaned[run.start or ""]:
        yield f"{folder / run.run / SPEC} starts from other weights than those of {run.start}"


def _left_out(whole: dict[str, Any], run: RunEntry) -> LeftOut | None:
    """What a run leaves out by its spec.json; of a file or a detector study.json alone tells the name."""
    pretrain = whole["data"].get("pretrain")
    said = pretrain.get("without") if isinstance(pretrain, dict) and stage_of(whole) == "pretrain" else None
    if not isinstance(said, dict):
        return None
    rest = {name: value for name, value in pretrain.items() if name != "without"}
    of_whole = f"pretrain-{fingerprint({**whole, 'data': {**whole['data'], 'pretrain': rest}})}"
    way = next((way for way in ("random", "plan", "detector") if way in said), "file")
    named = {} if run.without is None or way not in ("file", "detector") else {way: getattr(run.without, way)}
    share = said.get("share") if way == "detector" else said.get("random")
    try:
        return LeftOut.model_validate({"way": way, **named, "share": share, "count": said.get("count"), "whole": of_whole})
    except ValidationError:
        return None


def trained(decided: Decided, *without: str) -> dict[str, Any]:
    """What decides the pre-training that a run is or starts from, but for these parts."""
    data = {name: value for name, value in decided.data.items() if name != "clean"}
    out = {name: value for name, value in decided.whole.items() if name != "clean"} | {"data": data}
    return {name: value for name, value in out.items() if name not in without}
