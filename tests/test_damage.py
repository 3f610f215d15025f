"""Whatever lies in the place of a file of ours: no number and no weight changes silently, nothing ends in a traceback or
hangs."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import damage
import pytest
from conftest import antidote, journals
from test_run import kill_after, whole  # noqa: F401  (a fixture)
from test_sweep import RATE, finish, swept

from configs.plan import runs
from configs.spec import Loaded, load
from data.refusal import UserError
from engine.study import lock, status
from engine.study.scheduler import Scheduler
from records.json_file import Damaged, parse, read_json, write_json
from records.lines import read_lines, seal, with_digests, without_digests
from report.load import read_study
from report.verdict import make_report

SECONDS = 20  # for the readers of one study
OTHERS = ["", "[]", "{}", "null", "5", '"x"', "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, '{"pid": ' + "9" * 5000 + "}",
          "\0\1\2", "{\xff}"]  # fmt: skip


@pytest.fixture
def loaded(spec: Path) -> Loaded:
    return load(spec)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """TimeoutError from whatever takes longer."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def silent(name: str, before: Any, after: Any, printed: str, former: Any) -> bool:
    """Whether a reader has read something else and said nothing of it."""
    if isinstance(after, UserError) or after == before:
        return False
    if name in ("report", "status"):  # with remarks
        return bool(after[1] == before[1])
    if name == "resume":
        return bool(after != former or "set aside" not in printed)
    if name == "skipped":
        return not after[1] and after[0] != before[0][: len(after[0])]  # the end may be cut off by a kill
    return "is damaged" not in printed or name not in ("reuse", "core")


def tried(loaded: Loaded, tmp_path: Path, draws: int, seed: int) -> Counter[str]:
    """How many draws some reader named, or read as the state before; how many changed nothing that is read."""
    origin, place, scratch = tmp_path / "origin/runs/tiny", tmp_path / "runs/tiny", tmp_path / "scratch"
    damage.make(origin, loaded)
    paths = sorted(path.relative_to(origin) for path in origin.rglob("*") if path.is_file())

    def again(*without: Path) -> None:
        for folder in (place.parent, scratch):
            shutil.rmtree(folder, ignore_errors=True)
        damage.copied(origin, place)
        scratch.mkdir()

    again()
    before, _ = damage.seen(loaded, place, scratch)
    assert not any(isinstance(value, UserError) for value in before.values()), before
    again()
    (max(place.glob("*/checkpoints/step-*")) / "manifest.json").unlink()
    former = damage.seen(loaded, place, scratch)[0]["resume"]
    assert former[0].step == 8
    out: Counter[str] = Counter()
    for number in range(seed, seed + draws):
        draw = random.Random(number)
        path, kind = draw.choice(paths), draw.choice(damage.KINDS)
        again()
        damage.damage(place / path, kind, draw)
        try:
            with time_limit():
                after, printed = damage.seen(loaded, place, scratch)
        except Exception as error:
            raise AssertionError(f"draw {number}, {path}, {kind}") from error
        wrong = [name for name in before if silent(name, before[name], after[name], printed, former)]
        assert not wrong, (number, str(path), kind, wrong, printed)
        out["named" if any(after[name] != before[name] for name in before) else "without an effect"] += 1
    return out


def test_no_damage_of_a_file_is_silent_a_traceback_or_endless(loaded: Loaded, tmp_path: Path) -> None:
    outcomes = tried(loaded, tmp_path, 60, 0)
    assert outcomes.total() == 60
    assert outcomes["named"] > 30


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_damages_are_answered(loaded: Loaded, tmp_path: Path) -> None:
    outcomes = tried(loaded, tmp_path, 2000, 1000)
    print(dict(outcomes))
    assert outcomes.total() == 2000
    assert outcomes["named"] > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stopped_study_that_is_damaged_goes_on_or_is_refused(
    whole: Path,  # noqa: F811
    spec: Path,
    tmp_path: Path,
) -> None:
    """Ten times, by the whole command."""
    kill_after(20, spec, [])
    stopped = spec.parent / "runs/tiny"
    paths = sorted(path.relative_to(stopped) for path in stopped.rglob("*") if path.is_file() and path.stat().st_size)
    outcomes: Counter[int] = Counter()
    for number in range(10):
        draw, here = random.Random(number), tmp_path / str(number)
        shutil.copytree(stopped, here / "runs/tiny")
        path, kind = draw.choice(paths), draw.choice(damage.KINDS)
        damage.damage(here / "runs/tiny" / path, kind, draw)
        print(number, path, kind, flush=True)
        out = antidote("--spec", str(spec), cwd=here)
        said = (number, str(path), kind, out.stdout, out.stderr)
        outcomes[out.returncode] += 1
        assert "Traceback" not in out.stderr, said
        if out.returncode:
            assert out.returncode == 2, said
            assert "is damaged" in out.stderr or "verifies" in out.stderr, said
            continue
        expected = journals(whole)
        for run, rows in journals(here / "runs/tiny").items():
            assert rows == expected[run], said
            weights = [study / run / "weights.safetensors" for study in (whole, here / "runs/tiny")]
            assert weights[0].read_bytes() == weights[1].read_bytes(), said
    print(dict(outcomes))
    assert outcomes[0] >= 5


def test_a_study_of_before_there_were_digests_is_read(loaded: Loaded, tmp_path: Path) -> None:
    study = tmp_path / "runs/tiny"
    damage.make(study, loaded)
    (tmp_path / "other").mkdir()
    before, _ = damage.seen(loaded, damage.copied(study, tmp_path / "with/runs/tiny"), tmp_path / "with")
    for path in (*study.rglob("*.json"), *study.rglob("*.jsonl")):
        text = re.sub(r',?\s*"(sha256|digest)": "\w+"(?=\s*}\n)', "", path.read_text())
        path.write_text(re.sub(r'"files": {\n  "(answers|card)[^}]*}', '"files": {}', text))
    assert "sha256" not in next(study.glob("*/card.json")).read_text()
    assert '"digest"' not in next(study.glob("*/metrics.jsonl")).read_text()
    for path in study.glob("*/finished.json"):  # the journal is shorter without digests
        end = json.loads(path.read_text())
        path.write_text(json.dumps({**end, "journal": (path.parent / "metrics.jsonl").stat().st_size}))
    for path in study.glob("*/checkpoints/*/manifest.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "journal": 0}))
    after, printed = damage.seen(loaded, study, tmp_path / "other")
    assert not [value for value in after.values() if isinstance(value, UserError)]
    assert "damaged" not in printed
    for name in ("status", "start", "moments", "skipped", "core", "start's card"):
        assert after[name] == before[name]
    assert after["report"][0][1] == before["report"][0][1], "the table"
    assert after["resume"][1] == before["resume"][1], "the weights"


ROWS = [
    b'{"kind": "measure", "epoch": 1, "step": 3, "top1": 0.5, "asr": "high"}', b'{"kind": "step", "epoch": null, "step": 3}',
    b'{"epoch": 1, "step": 3, "loss": 1.0}', b'{"kind": "step", "epoch": 1, "step": %b, "loss": 1.0}' % (b"9" * 5000),
    b'{"kind": "step", "epoch": 1e308, "step": 3, "loss": 1.0}', b'{"kind": "step", "epoch": 1, "step": -3, "loss": 1.0}',
    b'{"kind": "measure", "epoch": NaN, "step": 1}', b'{"kind": "bad", "epoch": 1, "step": 3, "bad_steps": 1e999}', b"[]",
    b"null", b"\xff\xfe", b"\0" * 50, b"[" * 5000, b'{"kind": []}', b'{"kind": "step", "epoch": 1, "step": 3, "loss": {}}',
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("whole_before", [True, False])
def test_a_journal_with_a_damaged_row_is_shown_and_the_row_is_named(
    loaded: Loaded, tmp_path: Path, row: bytes, whole_before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no row has a digest, as in journals of before."""
    study = tmp_path / "runs/tiny"
    damage.make(study, loaded)
    path = next(study.glob("pretrain-*/metrics.jsonl"))
    path.write_bytes((path.read_bytes() if whole_before else b"") + row + b"\n")
    (path.parent / "finished.json").unlink()
    assert status.main([str(study)]) == 0
    assert "1 lines of metrics.jsonl are damaged" in " ".join(capsys.readouterr().out.split())
    assert any("damaged lines, left out: 1" in note for note in make_report(read_study(study)).notes)


@pytest.mark.parametrize("text", OTHERS)
def test_what_is_no_file_of_ours_is_one_refusal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    if text == "{}":
        assert read_json(path, "") == {}  # a file of before there were digests
        return
    with pytest.raises(Damaged, match=r"x\.json is damaged \(.*\); do this"):
        read_json(path, "do this")


def test_every_flipped_bit_of_a_file_of_ours_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, content = tmp_path / "x.json", {"step": 6, "rate": 1e-3, "name": "ä\n", "files": {"a": [1, "0f"]}, "none": None}
    write_json(path, content)
    body = path.read_bytes()
    for place in range(8 * len(body)):
        flipped = bytearray(body)
        flipped[place // 8] ^= 1 << place % 8
        try:
            read = parse(bytes(flipped))
        except ValueError:
            continue
        assert {name: value for name, value in read.items() if name in content} == content, "but for the digest's own name"


def test_every_flipped_bit_cut_and_doubled_line_of_a_journal_is_found(tmp_path: Path) -> None:
    path, last, lines = tmp_path / "x.jsonl", "", []
    for step in range(3):
        line, last = seal(f'{{"step": {step}, "loss": 0.{step + 1}25}}', last)
        lines.append(line.encode())
    first, second, third = lines
    body = first + second + third
    path.write_bytes(body)
    assert [(len(read.whole), read.damaged, read.last) for read in [read_lines(path, len(body))]] == [(3, [], last)]
    harmed = [body[:end] for end in range(len(body))]
    for bit in range(8 * len(body)):
        harmed.append(body[: bit // 8] + bytes([body[bit // 8] ^ 1 << bit % 8]) + body[bit // 8 + 1 :])
    for other in harmed:
        path.write_bytes(other)
        assert read_lines(path, len(body)).damaged, other
        assert without_digests(other) is None or other in (b"", first, first + second), other
    for other in (first + third, first + first + second + third, second + first + third, second + third):
        path.write_bytes(other)
        assert read_lines(path).damaged, other


@pytest.mark.parametrize("count", [1, 3])
def test_a_journal_comes_back_from_its_last_digest_and_no_other_does(count: int) -> None:
    last, lines = "", []
    for step in range(count):
        line, last = seal(f'{{"step": {step}, "words": "a caf\u00e9, \\"digest\\""}}', last)
        lines.append(line.encode())
    body = b"".join(lines)
    short = without_digests(body)
    assert short is not None
    assert (short.count(b', "digest": "'), len(short)) == (1, len(body) - 26 * (count - 1))
    assert with_digests(short) == body
    harmed = [short[:end] for end in range(len(short))] + [short + b"\n", short + short, b"\n" + short, body + short]
    for bit in range(8 * len(short)):
        harmed.append(short[: bit // 8] + bytes([short[bit // 8] ^ 1 << bit % 8]) + short[bit // 8 + 1 :])
    for other in harmed:
        with pytest.raises(ValueError):
            with_digests(other)


@pytest.mark.parametrize("text", [*OTHERS, "half"])
def test_a_damaged_generation_is_proposed_anew_and_the_search_ends(spec: Path, tmp_path: Path, text: str) -> None:
    sweep = {RATE: {"low": 1e-6, "high": 1e-2, "scale": "log"}, "search": {"kind": "optuna", "trials": 6, "together": 2}}
    loaded, study = swept(spec, sweep), tmp_path / "runs/tiny"

    def carried_out() -> list[str]:
        """The search to its end, as fake runs."""
        scheduler = Scheduler.of(loaded, study, None)
        with time_limit():
            while scheduler.search_further() or any(not (study / run.folder).exists() for run in scheduler.runs):
                for number, run in enumerate(runs([point for point in loaded.points], "clean") + scheduler.runs):
                    if not (study / run.folder).exists():
                        finish(study, run.folder, 0.1 + number / 100, 0.01)
        return [run.folder for run in scheduler.runs]

    before = carried_out()
    assert len(before) == 7, "and what they start from"
    first, second = sorted((study / "search").glob("*.json"))
    kept = [read_json(path, "") for path in (first, second)]
    first.write_bytes(first.read_bytes()[:40] if text == "half" else text.encode("latin-1"))
    assert carried_out() == before
    assert [read_json(path, "") for path in (first, second)] == kept
    assert len(list((study / "search").glob("aside-*"))) == 1


@pytest.mark.parametrize("text", [*OTHERS, json.dumps({"machine": "here", "pid": -5}), json.dumps({"pid": 1e300})])
def test_a_damaged_lock_counts_as_alive_as_it_is_young(tmp_path: Path, text: str) -> None:
    path = tmp_path / "claim.1"
    path.write_bytes(text.replace("here", lock.LockFile.of_this_process().machine).encode("latin-1"))
    with time_limit():
        assert lock.acquire(tmp_path) is None
        os.utime(path, (path.stat().st_mtime - lock.STALE - 10,) * 2)
        owner = lock.owner(tmp_path)
    assert owner is not None
    assert not owner.alive
