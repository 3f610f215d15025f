"""Turns a study folder into its report: figures, one table of every number, one page.

    python -m engine.report runs/demo

reads what the engine wrote (`study.json`, a folder for each run) and writes `runs/demo/report/`. It works on
unfinished studies, and the same numbers always give the same files. Names, captions and specs come from
other people: the page escapes them, and the table keeps spreadsheets from running them as formulas.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from data.refusal import Refusal
from engine import figures
from engine.figures import CAP, Curve, Mark, Panel, percent, rate_text
from measures.frontier import Point, best_accuracy, lowest_asr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "mmcl": "MMCL",
    "ssl": "SSL",
    "mmcl_ssl": "MMCL+SSL",
    "siglip": "SigLIP",
    "cleanclip": "CleanCLIP",
    "cyclip": "CyCLIP",
    "slip": "SLIP",
    "par": "PAR",
    "deep_cluster": "deep clustering",
    "unlearn": "unlearning",
}
CAPS = (0.01, 0.05, 0.10, 0.20)
FLOOR = 0.95  # of the start's accuracy
KEYS = ("run", "stage", "pretrain_objective", "clean_objective", "cleaner", "rate", "seed", "epoch", "step", "images")
RATES = ("top1", "asr")
LARGEST_PICTURE = 16 * 2**20  # bytes of a poison.png that the page takes in
ROOT = Path(__file__).resolve().parents[1]


class Run(BaseModel, frozen=True):
    """One run as study.json lists it."""

    run: str
    stage: Literal["pretrain", "twin", "clean"]
    start: str | None = None
    pretrain_objective: str
    clean_objective: str | None = None
    cleaner: str | None = None  # what the sweep calls it, or its objective
    cleaning: tuple[str, ...] = ()  # the names in `swept` that concern the cleaning alone
    rate: float | None = None
    seed: int | None = None
    swept: dict[str, Any] = {}


class Plan(BaseModel, frozen=True):
    """study.json: what was asked, and the runs that answer it."""

    name: str
    command: str = ""
    question: str | None = None
    target: str | None = None
    spec: dict[str, Any] = {}
    runs: list[Run]


class Record(NamedTuple):
    """What one run has written so far; `state` says in words how far it came."""

    run: Run
    measures: list[dict[str, Any]]
    damaged: int
    card: dict[str, Any]
    finished: bool
    state: str
    poison: bytes | None


class Study(NamedTuple):
    """A study folder, read."""

    folder: Path
    plan: Plan
    records: list[Record]


class Moment(NamedTuple):
    """What one run measured at one moment, on the compared images; rates in [0, 1]."""

    epoch: float
    top1: float | None
    asr: float | None


Way = tuple[str, tuple[tuple[str, str], ...]]  # objective, swept settings


class Verdict(NamedTuple):
    """One sentence for one way of pre-training; status is 'cleaned', 'dear', 'poisoned' or 'open'."""

    status: str
    sentence: str


def read_study(folder: Path) -> Study:
    """The study in the folder. Raises Refusal for anything that is not one."""
    path = folder / "study.json"
    hint = "Give the folder that engine/run.py wrote, such as runs/demo."
    if not path.is_file():
        raise Refusal(f"{folder} is not a study: expected a folder with study.json in it. {hint}")
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Refusal(f"{path} cannot be read: {where}: {first['msg']}. {hint}") from error
    for run in plan.runs:
        if run.run in ("", ".", "..") or Path(run.run).name != run.run:
            raise Refusal(f"{path} names the run {run.run!r}, expected the plain name of a folder. {hint}")
    return Study(folder, plan, [_read_run(folder / run.run, run) for run in plan.runs])


def _read_run(folder: Path, run: Run) -> Record:
    """What is in a run's folder; a missing or half-written file is an early state, no error."""
    rows, damaged = _read_rows(folder / "metrics.jsonl")
    finished = (folder / "finished.json").is_file()
    state = "finished" if finished else "not started"
    if rows and not finished:
        state = f"unfinished, at epoch {rows[-1].get('epoch', '?')}, step {rows[-1].get('step', '?')}"
    card = folder / "card.json"
    facts = _parse(card.read_bytes()) if card.is_file() else None
    poison = folder / "poison.png"
    picture = poison.read_bytes() if poison.is_file() and poison.stat().st_size < LARGEST_PICTURE else None
    measures = [row for row in rows if row.get("kind") == "measure"]
    return Record(run, measures, damaged, facts or {}, finished, state, picture)


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a journal and how many lines were damaged; a last line cut short is not counted."""
    if not path.is_file():
        return [], 0
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [_parse(line) for line in lines if line.strip()]
    return [row for row in [*rows, _parse(last)] if row is not None], rows.count(None)


def _parse(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object in the text, or None if there is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _number(row: dict[str, Any], key: str) -> float | None:
    """The row's finite number under the key, or None."""
    value = row.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else None


def evaluations(record: Record) -> list[dict[str, Any]]:
    """One row for each evaluation of the run, its keys the columns of results.csv.

    Rows of one moment and one set of images are one evaluation; of a number measured twice (a resumed
    run) the later one counts.
    """
    merged: dict[tuple[float, float, str], dict[str, Any]] = {}
    for row in record.measures:
        at = (_number(row, "epoch") or 0, _number(row, "step") or 0, str(row.get("images", "")))
        numbers = {key: n for key in row if key not in KEYS and (n := _number(row, key)) is not None}
        merged.setdefault(at, dict.fromkeys(RATES)).update(numbers)
    facts = dict(_flat(record.run.swept)) | record.run.model_dump(include=set(KEYS))
    return [{**numbers, **facts, **dict(zip(KEYS[-3:], at, strict=True))} for at, numbers in sorted(merged.items())]


def _compared_images(study: Study) -> tuple[str | None, str | None]:
    """The images whose top-1 and whose ASR are compared: the first with both, or the first of each."""
    rows = [row for record in study.records for row in evaluations(record)]
    tops, asrs = (list(dict.fromkeys(row["images"] for row in rows if row[key] is not None)) for key in RATES)
    both = [images for images in tops if images in asrs]
    return (both or tops or [None])[0], (both or asrs or [None])[0]


def _timeline(record: Record, images: tuple[str | None, str | None]) -> list[Moment]:
    """The run's numbers on the compared images, in the order of epochs and steps."""
    moments: dict[tuple[float, float], dict[str, float]] = {}
    for row in evaluations(record):
        here = moments.setdefault((row["epoch"], row["step"]), {})
        for key, chosen in zip(RATES, images, strict=True):
            if row["images"] == chosen and row[key] is not None:
                here[key] = row[key]
    return [Moment(epoch, m.get("top1"), m.get("asr")) for (epoch, _), m in sorted(moments.items())]


def _way(run: Run) -> Way:
    """How a run pre-trains: its objective, and the other swept settings that are not of the cleaning."""
    own = {name: value for name, value in run.swept.items() if name not in run.cleaning}
    settings = []
    for key, value in _flat(own):
        elsewhere = key.startswith(("clean", "data.clean", "measure", "machine")) or key.endswith("seed")
        if not elsewhere and key not in ("pretrain.objective", "pretrain.objective.kind"):
            settings.append((".".join(key.split(".")[-2:]), value))
    return run.pretrain_objective, tuple(settings)


def _title(way: Way) -> str:
    """The way of pre-training in words: 'MMCL', or with more settings 'MMCL · poison.count=500'."""
    return " · ".join([_name(way[0]), *(f"{key}={value}" for key, value in way[1])])


def panels(study: Study) -> list[Panel]:
    """Everything measured, one panel for each way of pre-training; seeds of one way share a panel."""
    images = _compared_images(study)
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
    return [_panel(way, members, images) for way, members in ways.items()]


def _panel(way: Way, members: list[Record], images: tuple[str | None, str | None]) -> Panel:
    """The panel of the runs that share one way of pre-training.

    The uncleaned model is the last evaluation of a finished pre-training run, or else epoch 0 of a
    cleaning run that starts from it. Epoch 0 is never a cleaned point.
    """
    starts: dict[str, Point[str]] = {}
    twins: list[Point[str]] = []
    points: list[Point[Mark]] = []
    for record in sorted(members, key=lambda member: member.run.stage == "clean"):
        run, origin = record.run, record.run.start or record.run.run
        seen = [
            (moment.epoch, Point(moment.asr, moment.top1, origin))
            for moment in _timeline(record, images)
            if moment.asr is not None and moment.top1 is not None
        ]
        if run.stage == "clean":
            for epoch, point in seen:
                if epoch == 0:
                    starts.setdefault(origin, point)
                    continue
                who = _name(run.cleaner or run.clean_objective)
                mark = Mark(run.run, epoch, run.rate, who, starts.get(origin))
                points.append(Point(point.asr, point.top1, mark))
        elif seen and record.finished and run.stage == "pretrain":
            starts[origin] = seen[-1][1]
        elif seen and record.finished:
            twins.append(seen[-1][1])
    finished = sum(member.finished for member in members)
    return Panel(_title(way), list(starts.values()), twins, points, finished, len(members))


def curves(study: Study) -> list[Curve]:
    """The course of every pre-training run, the twins included."""
    images = _compared_images(study)
    shown = [record for record in study.records if record.run.stage != "clean"]
    several = len({record.run.seed for record in shown}) > 1
    found = []
    for record in shown:
        way, line = _title(_way(record.run)), _timeline(record, images)
        label = f"{way}, seed {record.run.seed}" if several else way
        twin = record.run.stage == "twin"
        top1 = [(moment.epoch, moment.top1) for moment in line if moment.top1 is not None]
        asr = [(moment.epoch, moment.asr) for moment in line if moment.asr is not None]
        found.append(Curve(way, f"{label}, twin without poison" if twin else label, twin, top1, asr))
    return found


def verdict(panel: Panel) -> Verdict:
    """What the panel says, in one sentence with its numbers."""
    best, lowest, start = best_accuracy(panel.points, CAP), lowest_asr(panel.points, 0.0), _mean(panel.starts)
    model, under = f"the {panel.title} model", f"ASR ≤ {100 * CAP:g} %"
    begun = f"ASR {percent(start.asr)} at top-1 {percent(start.top1)}" if start else "not measured"
    status = "open"
    if start and start.asr <= CAP:
        sentence = f"The attack did not take on {model}: {begun} before any cleaning."
    elif best:
        status, sentence = _cleaned(model, best)
    elif lowest:
        low = f"{percent(lowest.asr)} at top-1 {percent(lowest.top1)}"
        sentence = f"No cleaning run reached {under} on {model}; lowest was {low} (start {begun})."
        status = "poisoned"
    else:
        sentence = f"No cleaning run has been measured yet on {model} (start {begun})."
    return Verdict(status, sentence if panel.finished == panel.total else f"So far: {sentence}")


def _cleaned(model: str, best: Point[Mark]) -> tuple[str, str]:
    """Status and sentence for a model that was cleaned; a loss beyond the floor is spelled out."""
    start, who, top1 = best.label.start, best.label.objective, percent(best.top1)
    if start is None:
        return (
            "open",
            f"{who} brought {model} to ASR {percent(best.asr)} at top-1 {top1} (start not measured).",
        )
    done = f"{who} brought {model} from ASR {percent(start.asr)} to {percent(best.asr)} at top-1 {top1}"
    if best.top1 >= FLOOR * start.top1:
        return "cleaned", f"{done} (start {percent(start.top1)})."
    loss = 100 * (start.top1 - best.top1)
    return "dear", f"{done} (start {percent(start.top1)}), a loss of {loss:.1f} points."


def summary(panel: Panel, cleaners: Sequence[str]) -> list[tuple[str, str, str]]:
    """The panel's rows of the small table: what, the number, and a remark on it; a row for each of the study's cleaners, so
    that all panels have the same."""
    start, twin = _mean(panel.starts), _mean(panel.twins)
    many = f"mean of {len(panel.starts)} runs" if len(panel.starts) > 1 else ""
    rows = [
        ("start top-1", percent(start.top1) if start else "none", many),
        ("start ASR", percent(start.asr) if start else "none", many),
        ("twin ASR", percent(twin.asr) if twin else "none", f"top-1 {percent(twin.top1)}" if twin else ""),
    ]
    for cap in CAPS:
        best = best_accuracy(panel.points, cap)
        remark = f"ASR {percent(best.asr)}, {_where(best)}" if best else ""
        rows.append((f"best top-1 at ASR ≤ {100 * cap:g} %", percent(best.top1) if best else "none", remark))
    for who in cleaners if len(cleaners) > 1 else ():
        best = best_accuracy([point for point in panel.points if point.label.objective == who], CAP)
        remark = f"ASR {percent(best.asr)}, {_where(best)}" if best else ""
        rows.append((f"{who}: best top-1 at ASR ≤ {100 * CAP:g} %", percent(best.top1) if best else "none", remark))
    low = lowest_asr(panel.points, FLOOR * start.top1) if start else None
    remark = f"top-1 {percent(low.top1)}, {_where(low)}" if low else ""
    what = f"lowest ASR at top-1 ≥ {100 * FLOOR:g} % of start"
    rows.append((what, percent(low.asr) if low else "none", remark))
    return [*rows, ("cleaned points", str(len(panel.points)), f"{panel.finished} of {panel.total} runs done")]


def notes(study: Study) -> list[str]:
    """What a reader must know before trusting the numbers."""
    done, total = sum(record.finished for record in study.records), len(study.records)
    said = [] if done == total else [f"{done} of {total} runs are finished; the rest is still missing here."]
    for record in study.records:
        if record.damaged:
            said.append(f"{record.run.run}/metrics.jsonl has damaged lines, left out: {record.damaged}.")
    for panel in panels(study):
        twin = _mean(panel.twins)
        if twin and twin.asr > CAP:
            said.append(
                f"The {panel.title} twin, never poisoned, has itself an ASR of {percent(twin.asr)}: "
                f"a cap of {100 * CAP:g} % asks for less than a clean model reaches on these images."
            )
    of_top1, of_asr = _compared_images(study)
    if of_top1 and of_asr and of_top1 != of_asr:
        said.append(f"Top-1 is measured on {of_top1}, ASR on {of_asr}.")
    others = {row["images"] for r in study.records for row in evaluations(r)} - {of_top1, of_asr}
    if others:
        listed = ", ".join(sorted(others))
        said.append(f"Figures and verdicts are for {of_top1 or of_asr}; the table has also {listed}.")
    return said


def frontier_figure(study: Study) -> "Figure":
    """Accuracy against attack success, also for TensorBoard: `frontier_figure(read_study(folder))`."""
    return figures.frontier(panels(study))


def results_csv(study: Study) -> str:
    """All evaluations as one table; text that a spreadsheet would run as a formula starts with '."""
    rows = [row for record in study.records for row in evaluations(record)]
    swept = {key for record in study.records for key, _ in _flat(record.run.swept)} - {*KEYS, *RATES}
    others = {key for row in rows for key in row} - {*KEYS, *RATES} - swept
    columns = [*KEYS, *RATES, *sorted(others), *sorted(swept)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def write_report(study: Path) -> Path:
    """Writes `report/` inside the study folder and returns the path of its page. Raises Refusal."""
    return _write(read_study(study))


def _write(read: Study) -> Path:
    """Writes every file of the report, each at once or not at all; returns the page's path."""
    out, course = read.folder / "report", curves(read)
    out.mkdir(exist_ok=True)
    whole = frontier_figure(read)
    wide = {"frontier.png": _drawn(whole, "png"), "dynamics.png": _drawn(figures.dynamics(course), "png")}
    narrow = {
        "frontier.png": _drawn(figures.frontier(panels(read), columns=1), "png"),
        "dynamics.png": _drawn(figures.dynamics(course, columns=1), "png"),
    }
    files = {**wide, "frontier.pdf": _drawn(whole, "pdf"), "results.csv": results_csv(read).encode()}
    files["index.html"] = _page(read, wide, narrow).encode()
    for name, content in files.items():
        _write_whole(out / name, content)
    return out / "index.html"


def _page(read: Study, wide: dict[str, bytes], narrow: dict[str, bytes]) -> str:
    """The page, complete in itself: the pictures for wide and for narrow screens travel inside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(picture=_data_uri, digest=_digest, rate=rate_text, name=_name, flat=_flat, tied=_tied)
    machines: dict[str, int] = {}
    for record in read.records:
        facts = {key: record.card[key] for key in ("hardware", "versions") if key in record.card}
        if facts:
            text = json.dumps(facts, sort_keys=True)
            machines[text] = machines.get(text, 0) + 1
    poisons: dict[bytes, list[str]] = {}
    for record in read.records:
        if record.poison:
            poisons.setdefault(record.poison, []).append(record.run.run)
    found = panels(read)
    cleaners = list(dict.fromkeys(point.label.objective for panel in found for point in panel.points))
    return page.get_template("report.html.j2").render(
        plan=read.plan,
        records=read.records,
        finished=sum(record.finished for record in read.records),
        verdicts=[verdict(panel) for panel in found],
        summaries=[(panel.title, summary(panel, cleaners)) for panel in found],
        notes=notes(read),
        wide=wide,
        narrow=narrow,
        poisons=poisons,
        rows=[row for record in read.records for row in evaluations(record)],
        machines=[(json.loads(facts), count) for facts, count in machines.items()],
        spec=json.dumps(read.plan.spec, indent=2, ensure_ascii=False),
        again=f"python -m engine.report {shlex.quote(str(_short(read.folder)))}",
    )


def _short(folder: Path) -> Path:
    """The folder as seen from the repository, if it lies there."""
    whole = folder.resolve()
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole


def _mean(points: list[Point[str]]) -> Point[str] | None:
    """The mean of the points, or None of none."""
    if not points:
        return None
    return Point(fmean(p.asr for p in points), fmean(p.top1 for p in points), "mean")


def _where(point: Point[Mark]) -> str:
    """Which evaluation a point is."""
    rate = f", rate {rate_text(point.label.rate)}" if point.label.rate is not None else ""
    return f"{point.label.objective}{rate}, epoch {point.label.epoch:g}"


def _name(kind: str | None) -> str:
    """An objective's name as people write it; an unlisted one stays as it is."""
    return NAMES.get(kind or "", kind or "an unnamed objective")


def _tied(sentence: str) -> str:
    """The sentence with its numbers tied to their signs, so that no line breaks between them."""
    whole = sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace("≤ ", "≤\N{NO-BREAK SPACE}")
    return whole.replace("top-1", "top-\N{WORD JOINER}1")


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (dotted key, text) pairs."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text


def _cell(value: Any) -> Any:
    """A cell of results.csv: numbers as they are, text made harmless."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _drawn(figure: "Figure", kind: str) -> bytes:
    """The figure as a file's bytes, without a date, so that equal numbers give equal files."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    return out.getvalue()


def _data_uri(picture: bytes) -> str:
    """The PNG as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _digest(script: str) -> str:
    """The script's SHA-256 in base64, as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _write_whole(path: Path, content: bytes) -> None:
    """Writes the file so that readers see the old or the new one, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def main(given: list[str]) -> int:
    """Runs the command line; the exit code is 2 when the folder is no study."""
    parser = argparse.ArgumentParser(prog="python -m engine.report", description="Report on a study.")
    parser.add_argument("study", type=Path, help="the folder that engine/run.py wrote, such as runs/demo")
    try:
        read = read_study(parser.parse_args(given).study)
    except Refusal as error:
        print(error, file=sys.stderr)
        return 2
    page = _write(read)
    for panel in panels(read):
        print(verdict(panel).sentence)
    for remark in notes(read):
        print(f"Note: {remark}")
    print(page, page.with_name("frontier.png"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
