"""Packed studies, and the open matrix of several: what is joined, what is marked, what is refused."""

import csv
import json
import lzma
import re
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import ROOT
from submissions import ATTACK, CLEANERS, TEST, journal, submission
from test_audit_report import record, write

from data.refusal import UserError
from records.detection import DetectionJson
from records.json_file import DIGEST, write_json
from records.perturbation import PerturbationJson, Perturbed
from report.__main__ import main
from report.load import read_study
from report.markdown import plain, section
from report.packed import SUFFIX, pack
from report.submission import open_study, read_submission
from report.tables import verdict_json
from report.verdict import make_report

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command line, which must end with exit code 2; returns what it says."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    return run


def matrix(tmp_path: Path, *studies: Path) -> list[dict[str, Any]]:
    """The cells of matrix.json."""
    assert main(["--matrix", *map(str, studies), "--out", str(tmp_path / "matrix")]) == 0
    cells: list[dict[str, Any]] = json.loads((tmp_path / "matrix/matrix.json").read_text())
    return cells


def measured(run: Path, rates: list[tuple[float, float]], **more: Any) -> None:
    """Writes a finished run's journal anew, as `journal` does."""
    journal(run, rates, **more)
    end = {key: value for key, value in json.loads((run / "finished.json").read_text()).items() if key != DIGEST}
    write_json(run / "finished.json", {**end, "journal": (run / "metrics.jsonl").stat().st_size})


def test_a_twin_stands_beside_models_of_the_attack_that_it_was_measured_under(tmp_path: Path) -> None:
    """Its folder is the same whatever poisons the others: only what was measured of it under their trigger counts."""
    small: dict[str, Any] = {"cleaners": {"CleanCLIP": CLEANERS["CleanCLIP"]}, "rates": (1e-3,)}
    other = {**ATTACK, "trigger": {"kind": "tensor", "file": "x"}}
    own, bare = submission(tmp_path / "own", **small), submission(tmp_path / "bare", attack=other, twin=False, **small)
    [cell] = [one for one in matrix(tmp_path, own, bare) if "tensor" in one["attack"]]
    assert "no twin" in cell["marks"]
    assert cell["status"] == "open", "nothing tells whether the pattern fools any model"
    for twin in own.glob("twin-*"):  # measured under both, as its record now tells
        end = {key: value for key, value in json.loads((twin / "finished.json").read_text()).items() if key != DIGEST}
        aims = [{"target": "banana", "trigger": other["trigger"]}]
        write_json(twin / "finished.json", {**end, "measured": {**end["measured"], "attack": aims}})
    found = {one["attack"].split()[0]: one for one in matrix(tmp_path, own, bare)}
    assert "no twin" not in found["tensor,"]["marks"]
    assert "no twin" in found["patch"]["marks"]


def test_one_twin_measured_under_two_attacks_is_no_conflict(tmp_path: Path) -> None:
    small: dict[str, Any] = {"cleaners": {"CleanCLIP": CLEANERS["CleanCLIP"]}, "rates": (1e-3,)}
    other = {**ATTACK, "trigger": {"kind": "tensor", "file": "x"}}
    first, second = submission(tmp_path / "first", **small), submission(tmp_path / "second", attack=other, **small)
    for twin in second.glob("twin-*"):
        measured(twin, [(0.1, 0.0), (0.95, 0.99)])
    found = {one["attack"].split()[0]: one for one in matrix(tmp_path, first, second)}
    assert found["patch"]["status"] == "dear"
    assert found["tensor,"]["status"] == "unplanted", "its twin has the same ASR"
    assert not any("has other numbers" in mark for one in found.values() for mark in one["marks"])


@pytest.mark.parametrize(
    ("rate", "more", "words"),
    [(1.7, {}, "top1 1.7"), (0.9, {"asr_top5": -0.5}, "asr_top5 -0.5"), (0.9, {"others": 1001}, "others 1001")],
)
def test_a_rate_that_is_none_is_refused(
    tmp_path: Path, refused: Refused, rate: float, more: dict[str, float], words: str
) -> None:
    study = submission(tmp_path / "s", seeds=(0,))
    measured(next(study.glob("clean-*")), [(0.95, 0.99), (rate, 0.01)], **more)
    assert f"{words}, which is no share of its pictures" in refused("--matrix", study, "--out", tmp_path / "matrix")


def test_a_packed_study_by_anybody_writes_no_other_file_and_no_other_section(tmp_path: Path, refused: Refused) -> None:
    study, page = submission(tmp_path / "s", seeds=(0,), twin=False), tmp_path / "docs/page.md"
    content = {key: value for key, value in json.loads((study / "study.json").read_text()).items() if key != DIGEST}
    page.parent.mkdir()
    write_json(study / "study.json", {**content, "name": "../../victim/own"})
    assert "holds a study named '../../victim/own', by which its figures are named" in refused(study, "--markdown", page)
    assert not page.exists()
    write_json(study / "study.json", {**content, "command": "x\n```\n\n## mini-main\n\n- forged ````` y"})
    report = make_report(read_study(study))
    assert "\n``````\nx ``` ## mini-main - forged ````` y\n" in section(report, [])
    assert section(report, []).count("\n## ") == 0


def test_a_packed_study_says_what_its_folder_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, out = submission(tmp_path / "s", objectives=("mmcl", "mmcl_ssl")), tmp_path / "packs/s.tar.xz"
    (study / "report").mkdir()
    assert main(["--pack", str(study), str(out)]) == 0
    assert "36 runs" in capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    first = out.read_bytes()
    assert b"not packed" not in lzma.decompress(first)
    assert lzma.decompress(first).count(b'", "digest": "') < 40  # one a journal
    assert len(first) < 17_000
    copy = shutil.copytree(study, tmp_path / "copy")
    (copy / "clean-000000000000").mkdir()  # no run of the study
    assert pack(copy, [record.run.run for record in read_study(copy).records][::-1]) == first
    folder, packed = (verdict_json(make_report(open_study(path)).judged) for path in (study, out))
    assert packed == folder
    assert "in 3 of 3 seeds" in packed


def test_what_was_found_of_runs_beside_their_training_is_packed_and_verified_too(tmp_path: Path, refused: Refused) -> None:
    study, out = submission(tmp_path / "s", seeds=(0,)), tmp_path / "s.tar.xz"
    run = next(study.glob("pretrain-*"))
    perturbed = PerturbationJson(images="x", pictures=1, fooled=(Perturbed(eps=4, clean=0.1, triggered=0.2),))
    perturbed.write(run)
    (run / "detect").mkdir()
    facts: dict[str, Any] = {"run": run.name, "weights": run.name, "pairs": 200, "poisoned": 2, "asked": {}}
    scored = DetectionJson(**facts, replaced=0, encoding=0, processes=1, files={}, detectors=[])
    scored.write(run)
    audit = record(run.name, 0.01, None, ["banana"], run=run.name, model="tiny")
    write(study, run.name, audit)
    assert main(["--pack", str(study), str(out)]) == 0
    (packed,) = [one for one in open_study(out).records if one.run.run == run.name]
    assert (packed.perturbed, packed.detection, packed.audit) == (perturbed, scored, audit)
    for file in (PerturbationJson.FILE, DetectionJson.FILE, "audit/audit.json"):
        body = (run / file).read_bytes()
        (run / file).write_text(json.dumps({name: value for name, value in json.loads(body).items() if name != DIGEST}))
        assert f"{run / file} holds no digest, so it can't be verified" in refused("--pack", study, out)
        (run / file).write_bytes(body)


def test_the_report_takes_a_packed_study_wherever_it_takes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("write", "markdown"):
        monkeypatch.setattr(f"report.{module}.figures", lambda report: [])  # which take long to draw
    monkeypatch.setattr("report.compare.render", lambda *arguments: b"")
    small: dict[str, Any] = {"cleaners": {"mmcl": CLEANERS["fine-tuning"]}, "seeds": (0,), "twin": False}
    for name in ("a", "b"):
        assert main(["--pack", str(submission(Path(name), **small)), f"{name}.tar.xz"]) == 0
    assert main(["a.tar.xz"]) == 0
    assert Path("a-report/index.html").is_file()
    assert main(["a.tar.xz", "--out", "there"]) == 0
    assert Path("there/verdict.json").read_bytes() == Path("a-report/verdict.json").read_bytes()
    assert main(["a.tar.xz", "b.tar.xz"]) == 0
    assert Path("a-report/compare-b/verdict.json").is_file()
    assert main(["a.tar.xz", "--markdown", "page.md"]) == 0
    assert "python -m report" in Path("page.md").read_text()
    assert "a.tar.xz" in capsys.readouterr().out + Path("page.md").read_text()


def repacked(path: Path, file: str = "", old: bytes = b"", new: bytes = b"") -> Path:
    """The packed study in the same form, with some bytes of its files of one name, or short ones of it, replaced."""
    with tarfile.open(path) as packed:
        files = [(member.name, packed.extractfile(member)) for member in packed]
        contents = [(name, content.read()) for name, content in files if content is not None]
    raw = tar_of(
        {name: content.replace(old, new) if file and name.endswith((file, f"{file}.short")) else content
         for name, content in contents}
    )  # fmt: skip
    path.with_name("changed.tar.xz").write_bytes(lzma.compress(raw))
    return path.with_name("changed.tar.xz")


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar in the form of packed studies."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return out.getvalue()


def test_one_changed_number_in_a_packed_study_is_refused(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = submission(tmp_path / "s", seeds=(0,))
    assert main(["--pack", str(study), str(tmp_path / "s.tar.xz")]) == 0
    assert read_submission(repacked(tmp_path / "s.tar.xz")).study.plan.name == "s"
    for file, old, new in (
        ("metrics.jsonl", b'"top1": 0.94', b'"top1": 0.95'),
        ("metrics.jsonl", b'}\n{"kind": "measure"', b'}{"kind": "measure"'),
        ("metrics.jsonl", b', "digest": "', b', "digests": "'),
        ("finished.json", b'"seconds": 10.0', b'"seconds": 11.0'),
        ("card.json", b'"pairs": 200', b'"pairs": 300'),
        ("spec.json", b'"epochs": 3', b'"epochs": 4'),
        ("study.json", b'"command": "run s"', b'"command": "run t"'),
    ):
        changed = repacked(tmp_path / "s.tar.xz", file, old, new)
        said = refused("--matrix", changed, "--out", tmp_path / "out")
        assert re.search(rf"{re.escape(str(changed))}/(clean-\w+/)?{file} ", said), said
        assert str(changed) in refused(changed)
    assert not (tmp_path / "out").exists()


def test_a_file_that_pack_did_not_write_is_refused(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a report of it would lie
    study, path = submission(tmp_path / "s", seeds=(0,)), tmp_path / "bad.tar.xz"
    assert main(["--pack", str(study), str(tmp_path / "s.tar.xz")]) == 0
    good = (tmp_path / "s.tar.xz").read_bytes()
    raw = lzma.decompress(good)
    name = sorted(study.glob("clean-*"))[0].name.encode()
    changes: dict[str, bytes] = {
        "no xz": raw,
        "empty": b"",
        "cut short": good[: len(good) // 2],
        "bytes behind": good + b"x",
        "two streams": good + good,
        "no tar": lzma.compress(b"x" * 600),
        "outside": lzma.compress(raw.replace(name + b"/spec.json", b"../" + name[3:] + b"/spec.json")),
        "absolute": lzma.compress(raw.replace(name + b"/spec.json", b"/" + name[1:] + b"/spec.json")),
        "another file": lzma.compress(raw.replace(b"/spec.json", b"/code.json")),
        "a link": lzma.compress(raw[:156] + b"2" + raw[157:]),
        "negative": lzma.compress(raw[:124] + b"-0000000001\0" + raw[136:]),
        "longer than all": lzma.compress(raw[:124] + b"77777777777\0" + raw[136:]),
        "a time": lzma.compress(raw[:136] + b"00000000001\0" + raw[148:]),
        "twice": lzma.compress(raw[:-10240].rstrip(b"\0") + b"\0" * 400 + raw),
    }
    for kind, content in changes.items():
        path.write_bytes(content)
        assert f"{path} is not a packed study" in refused(path), kind
    grown = tar_of({"study.json": b"{}", name.decode() + "/metrics.jsonl.short": b"\n" * 2**15})  # 26 bytes more a line
    twice = tar_of({f"{name.decode()}/metrics.jsonl{end}": b"" for end in ("", ".short")})
    path.write_bytes(lzma.compress(twice))
    assert f"{path} is not a packed study (it holds {name.decode()}/metrics.jsonl twice)" in refused(path)
    monkeypatch.setattr("report.packed.LARGEST", 2**19)
    path.write_bytes(lzma.compress(grown))
    assert "unpacked it is larger than 0 MiB" in refused(path)
    monkeypatch.setattr("report.packed.LARGEST", 2**20)
    path.write_bytes(lzma.compress(bytes(2**20 + 512)))
    assert "unpacked it is larger than 1 MiB" in refused(path)
    monkeypatch.setattr("report.packed.LARGEST_PACKED", 100)
    assert "larger than" in refused(tmp_path / "s.tar.xz")
    assert not (tmp_path / "bad-report").exists()
    assert "expected a study's folder and a file" in refused("--pack", study, tmp_path / "s.zip")


@pytest.mark.parametrize("changes", [60, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, changes: int) -> None:
    """Blanks of a JSON file may be others; whatever else is changed, inside the tar or outside, is told in a sentence."""

    def said(path: Path) -> tuple[Any, ...]:
        study, decided = read_submission(path)[1:]
        return study.plan, decided, [(record.card, record.end, record.measures, record.pace) for record in study.records]

    study, path = (
        submission(tmp_path / "s", seeds=(0,), rates=(1e-3,), cleaners={"a": CLEANERS["CleanCLIP"]}),
        tmp_path / "p.tar.xz",
    )
    assert main(["--pack", str(study), str(path)]) == 0
    packed, whole, same, refusals = path.read_bytes(), said(path), 0, 0
    for number in range(changes):
        random = Random(number)
        content = bytearray(packed if number % 5 == 0 else lzma.decompress(packed))
        for _ in range(random.choice((1, 1, 1, 3))):
            content[random.randrange(len(content))] = random.choice((random.randrange(256), *b' 09"{'))
        path.write_bytes(bytes(content) if number % 5 == 0 else lzma.compress(bytes(content), preset=0))
        try:
            assert said(path) == whole, number
            same += 1
        except UserError as error:
            refusals += str(path) in str(error)
    assert same + refusals == changes
    assert refusals > changes / 3


def test_seeds_of_studies_are_joined_and_no_run_counts_twice(tmp_path: Path) -> None:
    first, second = (
        submission(tmp_path / "a", seeds=(0, 1)),
        submission(tmp_path / "b", seeds=(1, 2, 3), name="another name"),
    )
    assert main(["--pack", str(second), str(tmp_path / "b.tar.xz")]) == 0
    cells = matrix(tmp_path, first, tmp_path / "b.tar.xz")
    assert [cell["column"] for cell in cells] == ["MMCL", "CleanCLIP"]
    for cell in cells:
        assert (cell["status"], cell["seeds"], cell["seeds_with"], cell["marks"]) == ("dear", 4, 4, [])
        assert cell["best_top1"] == pytest.approx(0.9015)  # the mean of 90.0, 90.1, 90.2, 90.3 %, seed 1 counted once
        assert cell["low"] < 0.9015 < cell["high"]
        assert (cell["start_asr"], cell["twin_asr"]) == (pytest.approx(0.99), 0.0)
        assert len(cell["clean_runs"]) == 8
        assert cell["commands"] == ["run a", "run another name"]
    rows = list(csv.DictReader((tmp_path / "matrix/matrix.csv").read_text().splitlines()))
    assert [float(row["best_top1"]) for row in rows] == [cell["best_top1"] for cell in cells]
    page = (tmp_path / "matrix/index.html").read_text()
    assert all(run in page for cell in cells for run in cell["clean_runs"])
    assert matrix(tmp_path, first, tmp_path / "b.tar.xz") == cells


def test_a_cleaned_twin_is_in_no_cell_and_fresh_weights_have_a_column(tmp_path: Path, refused: Refused) -> None:
    cleaners = {**CLEANERS, "scratch": {"objective": {"kind": "mmcl"}, "transform": {"kind": "fresh"}}}
    plain, whole = (
        submission(tmp_path / name / "s", cleaners=cleaners, clean_twin=name == "whole") for name in ("plain", "whole")
    )
    assert main(["--pack", str(whole), str(tmp_path / "s.tar.xz")]) == 0
    cells = [matrix(tmp_path, study) for study in (plain, whole, tmp_path / "s.tar.xz")]
    for one in cells:
        assert [(cell["column"], cell["status"], cell["seeds"], len(cell["clean_runs"])) for cell in one] == [
            ("MMCL", "scratch", 3, 6),  # as good as scratch, no better
            ("CleanCLIP", "scratch", 3, 6),
            ("MMCL after fresh", "control", 3, 6),
        ]
    assert {cell["best_top1"] for one in cells for cell in one} == {cells[0][0]["best_top1"]}
    study = json.loads((whole / "study.json").read_text())
    (twin, *_) = (run for run in study["runs"] if run.get("control") == "twin")
    twin["control"] = None  # to be counted as a cleaned poisoned model
    write_json(whole / "study.json", {key: value for key, value in study.items() if key != "sha256"})
    assert f"says control None of {twin['run']}, whose spec.json says 'twin'" in refused(
        "--matrix", whole, "--out", tmp_path
    )


SCRATCH = {"scratch": {"objective": {"kind": "cleanclip"}, "transform": {"kind": "fresh"}}}


@pytest.mark.parametrize(
    ("left", "verdict", "marks"),
    [
        (0.90, "dear", []),
        (0.30, "scratch", []),  # as scratch has it, which is of another study
        (0.09, "destroyed", ["3 of the 3 at chance"]),
    ],
)
def test_a_cleaner_is_judged_beside_scratch_in_its_row(left: float, verdict: str, marks: list[str], tmp_path: Path) -> None:
    cleaned = submission(tmp_path / "a", cleaners={"CleanCLIP": CLEANERS["CleanCLIP"]}, left=left)
    control = submission(tmp_path / "b", cleaners=SCRATCH, left=0.30)
    other = submission(tmp_path / "c", cleaners=SCRATCH, left=0.95, pairs=800)  # another clean set: another row
    cells = {(cell["column"], cell["data"]): cell for cell in matrix(tmp_path, cleaned, control, other)}
    ours, scratch, _ = cells.values()
    assert (ours["status"], ours["seeds_with"], ours["marks"]) == (verdict, 3, marks)
    assert ours["best_top1"] == pytest.approx(left + 0.001)  # scratch's seeds are not among them
    assert (scratch["status"], scratch["best_top1"]) == ("control", pytest.approx(0.301))
    assert scratch["sentence"].startswith("From fresh weights the same training on the clean set reached 30.1 %")
    assert "Control: trained from scratch" in (tmp_path / "matrix/index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "tells"),
    [
        ({"attack": {**ATTACK, "trigger": {"kind": "blend", "size": 48}}}, "attack"),
        ({"attack": {**ATTACK, "captions": "others"}}, "differs"),
        ({"objectives": ("mmcl_ssl",)}, "objective"),
        ({"pairs": 800}, "data"),
        ({"rates": (1e-3,)}, "tried"),
        ({"cleaners": {"fine-tuning": {"objective": {"kind": "mmcl"}, "epochs": 9}}}, "tried"),
        ({"cleaners": {"fine-tuning": {"objective": {"kind": "mmcl"}, "transform": {"kind": "fresh"}}}}, "column"),
    ],
)
def test_what_the_spec_decides_tells_cells_apart(tmp_path: Path, changes: dict[str, Any], tells: str) -> None:
    small = {"cleaners": {"fine-tuning": CLEANERS["fine-tuning"]}, "seeds": (0,)}
    cells = matrix(
        tmp_path, submission(tmp_path / "a", **small), submission(tmp_path / "b", **{**small, "seeds": (1,), **changes})
    )
    assert len(cells) == 2
    assert cells[0][tells] != cells[1][tells]
    assert [cell["seeds"] for cell in cells] == [1, 1]


def test_a_cell_says_what_it_lacks(tmp_path: Path) -> None:
    few = submission(tmp_path / "few", seeds=(0, 1), twin=False)
    bare = submission(tmp_path / "bare", objectives=("mmcl_ssl",), start=(0.95, 0.002))
    marks = {cell["objective"]: (cell["status"], cell["marks"]) for cell in matrix(tmp_path, few, bare)}
    assert marks["MMCL"] == ("dear", ["2 seeds, fewer than 3", "no twin"])
    status, (lack,) = marks["MMCL+SSL"]
    assert status == "unplanted"
    assert lack.startswith("no ground in 3 of 3: ASR was 0.2 %")
    assert "never planted" in (tmp_path / "matrix/index.html").read_text()


def test_the_same_run_with_other_numbers_is_marked_and_the_first_counts(tmp_path: Path) -> None:
    first, second = submission(tmp_path / "a"), submission(tmp_path / "b")
    run = next(r["run"] for r in json.loads((second / "study.json").read_text())["runs"] if r["stage"] == "clean")
    same = matrix(tmp_path, first, second)
    measured(second / run, [(0.95, 0.99), (0.94, 0.6), (0.93, 0.01)], seconds=7.0)
    cells = matrix(tmp_path, first, second)
    assert cells[0]["best_top1"] == same[0]["best_top1"]
    assert cells[0]["marks"] == [f"{run} has other numbers in {second}; those of the study given first count"]
    assert cells[1]["marks"] == []


def test_a_study_that_measured_less_of_the_same_runs_has_no_other_numbers(tmp_path: Path) -> None:
    first, second = submission(tmp_path / "a"), submission(tmp_path / "b")
    for skipped in (1, 0):  # epochs are counted from 0: with one skipped the others are said of other moments
        for run in second.glob("*-*"):
            rows = [json.loads(line) for line in (first / run.name / "metrics.jsonl").read_text().splitlines()]
            rates = [(row["top1"] * (1 + 1e-7), row["asr"]) for row in rows]  # another machine's rounding
            measured(run, rates[skipped:], top5=0.99)  # a number that the first study has not
        marks = [cell["marks"] for cell in matrix(tmp_path, first, second)]
        assert [any("has other numbers" in mark for mark in one) for one in marks] == [bool(skipped)] * 2
    assert marks == [[], []]


def test_a_search_that_is_part_of_a_larger_one_is_no_cell(tmp_path: Path) -> None:
    large, part = submission(tmp_path / "a", seeds=(0, 1, 2)), submission(tmp_path / "b", seeds=(0, 1), rates=(1e-4,))
    other = submission(tmp_path / "c", seeds=(7,), rates=(1e-4,))  # of a seed that the larger one has not
    whole = matrix(tmp_path, large)
    assert matrix(tmp_path, large, part) == whole
    cells = [cell for cell in matrix(tmp_path, part, other, large) if cell["column"] == "MMCL"]
    assert [(cell["seeds"], cell["status"]) for cell in cells] == [(3, "poisoned"), (3, "dear")]


def test_a_study_that_does_not_verify_is_named_and_nothing_is_written(tmp_path: Path, refused: Refused) -> None:
    good = submission(tmp_path / "good", seeds=(0,))
    told = {}
    for kind in ("unfinished", "renamed", "retold", "unsealed", "start", "swapped", "digestless", "absent"):
        study = submission(tmp_path / kind, seeds=(0,))
        content = json.loads((study / "study.json").read_text())
        run = next(one for one in content["runs"] if one["stage"] == "clean")
        here = study / run["run"]
        if kind == "unfinished":
            (here / "finished.json").unlink()
        elif kind == "renamed":
            here.rename(study / "clean-000000000000")
            run["run"] = "clean-000000000000"
        elif kind == "retold":
            run["rate"] = 0.5
        elif kind == "unsealed":
            lines = (here / "metrics.jsonl").read_text()
            (here / "metrics.jsonl").write_text(re.sub(r', "digest": "\w+"', "", lines))
        elif kind == "start":
            run["start"] = next(one["run"] for one in content["runs"] if one["stage"] == "twin")
        elif kind == "swapped":
            shutil.copyfile(study / content["runs"][0]["run"] / "card.json", here / "card.json")
        elif kind == "digestless":
            (here / "card.json").write_text(json.dumps({}))
        else:
            shutil.rmtree(here)
        content.pop("sha256")
        write_json(study / "study.json", content)
        told[kind] = here
    said = refused("--matrix", good, *(tmp_path / kind for kind in told), "--out", tmp_path / "out")
    for kind, here in told.items():
        assert re.search(rf"{tmp_path / kind}/(study.json|{here.name}|clean-0+)", said), kind
    assert f"{told['unfinished'] / 'finished.json'} is missing" in said
    assert "says rate 0.5" in said
    assert "has no digest in its line 1" in said
    assert str(good) not in said
    assert not (tmp_path / "out").exists()
    assert "name each study once" in refused("--matrix", good, good, "--out", tmp_path / "out")
    assert "--out" in refused("--matrix", good)
    assert "together" in refused("--matrix", good, "--markdown", "x.md", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("target", "words"), [("\ud800", "does not decide a run"), (json.loads("[" * 70 + "]" * 70), "deep")]
)
def test_what_no_page_can_show_is_refused(tmp_path: Path, refused: Refused, target: object, words: str) -> None:
    study = submission(tmp_path / "s", seeds=(0,), rates=(1e-3,), attack={**ATTACK, "target": target})
    assert words in refused("--matrix", study, "--out", tmp_path / "matrix")


def test_markup_in_a_submission_stays_text(tmp_path: Path) -> None:
    attack = {**ATTACK, "target": "<script>alert(1)</script>", "trigger": {"kind": '"><img src=x>', "size": None}, "also": 5}
    bad = "<b onclick='x'>=cmd()"
    matrix(tmp_path, submission(tmp_path / "s", seeds=(0,), attack=attack, name=bad, cleaners={bad: CLEANERS["CleanCLIP"]}))
    page = (tmp_path / "matrix/index.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b onclick" not in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert all(page.count(f'id="{link}"') == 1 for link in links)


def test_a_sweep_that_proposes_other_runs_for_each_seed_is_one_cell(tmp_path: Path) -> None:
    sweep = {"search": {"kind": "random", "trials": 2}, "clean.optimizer.rate": [1e-4, 1e-2]}
    small: dict[str, Any] = {"cleaners": {"x": CLEANERS["CleanCLIP"]}, "sweep": sweep}
    first = submission(tmp_path / "a", seeds=(0,), rates=(1e-3, 2e-4), **small)
    second = submission(tmp_path / "b", seeds=(1,), rates=(2e-3, 5e-4), **{**small, "sweep": {**sweep, "executor": "slurm"}})
    assert [cell["seeds"] for cell in matrix(tmp_path, first, second)] == [2]
    assert TEST["demo"] in str(read_submission(first).study.records[0].end)


PACKED = sorted(
    (ROOT / "docs/mini-results").glob("*.tar.xz"),
    key=lambda path: (path.name != "mini-main.tar.xz", path.name.removesuffix(SUFFIX)),
)


def test_committed_journals_are_small_and_those_of_the_note() -> None:
    if not PACKED:
        pytest.skip("no packed study in docs/mini-results: make mini writes them")
    assert sum(path.stat().st_size for path in PACKED) <= 5_000_000
    sections = re.findall("^## (.*)$", (ROOT / "docs/mini-results.md").read_text(), flags=re.MULTILINE)
    assert sections == [plain(open_study(path).plan.name) for path in PACKED]


@pytest.mark.slow
def test_committed_numbers_are_those_of_the_committed_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not PACKED:
        pytest.skip("no packed study in docs/mini-results: make mini writes them")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("report.markdown.render", lambda *arguments: b"")
    packed = [str(path.relative_to(ROOT)) for path in PACKED]
    assert main([*packed, "--markdown", str(tmp_path / "mini-results.md")]) == 0
    note = (ROOT / "docs/mini-results.md").read_text()
    assert (tmp_path / "mini-results.md").read_text().partition("\n## ")[2] == note.partition("\n## ")[2]
    assert main(["--matrix", *packed, "--out", str(tmp_path / "matrix")]) == 0
    for name in ("matrix.json", "matrix.csv"):
        assert (tmp_path / "matrix" / name).read_bytes() == (ROOT / "docs/matrix" / name).read_bytes()
