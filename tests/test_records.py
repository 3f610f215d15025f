"""What a run leaves on disk: written and read by one model each, old files too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import samples
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from records.card import Card, Fact
from records.ending import FailedJson, FinishedJson, PrunedJson, measured_as
from records.folder import RecordFile
from records.json_file import Damaged, write_json
from records.rows import BadRow, MeasureRow, StepRow, in_words, parse_row, read_journal, read_rows, row_of
from records.study_json import StudyJson

OLD_CARD = {
    "run": "clean-0f31c578c70d", "title": "clean mmcl_ssl -> PAR rate=0.003", "start": "pretrain-cda9b6569ef9",
    "transform": None, "transformed": None, "model": "demo-resnet, 4,633,880 parameters and the scale",
    "objective": {"kind": "par", "tau": 2.15}, "pairs": 2000, "poisoned pairs": 3, "epochs": 3,
    "steps": "1,093 (31 an epoch)", "batch": "1,064 (532 a process)",
    "optimizer": "torch_fused AdamW, rate 0.003, warm-up 10 steps, decay 0.1", "micro-batch": "1,000 pairs",
    "BatchNorm groups": "32 pairs", "BatchNorm": "frozen", "moments": "inherited", "captions": "at full length",
    "precision": "fp32", "pairwise core": "torch", "ZeRO stage": 1, "processes": 2,
    "device": "x86_64 CPU, 4 threads a process", "data digest": "a78196", "versions": {"torch": "2.15.0"},
}  # fmt: skip


def test_a_card_of_before_is_read_with_every_fact(tmp_path: Path) -> None:
    write_json(tmp_path / "card.json", OLD_CARD)
    card = Card.read(tmp_path)
    assert card is not None
    assert card.stage == "clean"
    assert (card.model, card.parameters, card.poisoned_pairs, card.zero) == ("demo-resnet", 4_633_880, 3, 1)
    assert (card.steps, card.epoch_steps, card.batch, card.process_batch, card.micro_batch) == (1093, 31, 1064, 532, 1000)
    assert (card.norm_group, card.norms, card.trims_captions, card.loss_core) == (32, "frozen", False, "torch")
    assert card.device.model_dump() == {"name": "x86_64 CPU", "gpu": False, "threads": 4}
    adamw = {"implementation": "torch_fused", "rate": 0.003, "warmup": 10, "decay": 0.1, "moments": "inherited"}
    assert card.optimizer.model_dump() == adamw
    card.write(tmp_path)
    assert Card.read(tmp_path) == card
    assert Fact("steps", "1,093 (31 an epoch)") in card.facts()
    assert Fact("objective.tau", "2.15") in card.facts()
    assert Fact("device", "x86_64 CPU, 4 threads a process") in card.machine_facts()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asr_of_3", "ASR (banana)"), ("asr_of_12", "ASR (a <b> & c)"), ("asr_of_3_2", "ASR (banana), attack 2"),
        ("asr_of_3_centre", "ASR (banana), in the centre"), ("asr_of_3_2_centre", "ASR (banana), attack 2, in the centre"),
        ("asr_of_4", "asr_of_4"), ("asr", "asr"), ("asr_2", "asr_2"), ("asr_of_3_x", "asr_of_3_x"), ("top1", "top1"),
    ],
)  # fmt: skip
def test_a_target_is_called_by_its_name_where_a_row_tells_it(name: str, words: str) -> None:
    assert in_words(name, {"3": "banana", "12": "a <b> & c"}) == words
    assert in_words(name, None) == name, "as a journal of before has it"


@pytest.mark.parametrize("field", ["steps", "model", "device", "optimizer", "batch", "processes"])
@pytest.mark.parametrize("value", ["", "many", None, [], {"a": 1}])
def test_an_old_card_that_makes_no_sense_is_damaged(tmp_path: Path, field: str, value: object) -> None:
    write_json(tmp_path / "card.json", {**OLD_CARD, field: value})
    with pytest.raises(Damaged):
        Card.read(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        Card.model_validate(samples.card()),
        FinishedJson.model_validate(samples.finished(joules=3.5)),
        PrunedJson.model_validate(samples.pruned()),
        FailedJson.now("the disk is full; free some"),
        StudyJson.model_validate(
            {"name": "s", "runs": [{"run": "clean-a", "stage": "clean", "pretrain_objective": "mmcl"}]}
        ),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_is_read_as_written_and_a_part_of_it_is_damaged(tmp_path: Path, record: RecordFile) -> None:
    record.write(tmp_path)
    assert type(record).read(tmp_path) == record
    path = tmp_path / record.FILE
    whole = path.read_bytes()
    for end in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(Damaged, match=f"{record.FILE} is damaged"):
            type(record).read(tmp_path)
    path.unlink()
    assert type(record).read(tmp_path) is None


def test_a_run_counts_as_measured_only_as_its_last_evaluation_was(tmp_path: Path) -> None:
    FinishedJson.model_validate(samples.finished(measured={"measure": ["zero_shot"]})).write(tmp_path)
    assert not measured_as(tmp_path, {"measure": ["zero_shot"]})  # its weights are not there
    (tmp_path / "weights.safetensors").touch()
    assert measured_as(tmp_path, {"measure": ["zero_shot"]})
    assert not measured_as(tmp_path, {"measure": []})


names = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1, max_size=8)
numbers = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False))


@given(st.integers(0, 10**9), st.floats(0, 100), st.dictionaries(names.map(lambda name: f"x_{name}"), numbers, max_size=5))
def test_a_journal_row_is_read_as_it_was_written(step: int, epoch: float, more: dict[str, float]) -> None:
    rows = [
        row_of("step", {"epoch": epoch, "step": step, "loss": 1.5, **more, "pairs_per_s": 3.0, "seconds": 2.0}),
        row_of("bad", {"epoch": epoch, "step": step, "bad_steps": 2}),
        row_of("measure", {"epoch": epoch, "step": step, "images": "i", "top1": 0.5, "asr": 0.25, **more}),
    ]
    assert [type(row) for row in rows] == [StepRow, BadRow, MeasureRow]
    for row in rows:
        line = row.text()
        assert line.startswith('{"kind": "')
        assert parse_row(line.encode()) == row
        assert json.loads(line)["step"] == step
    assert rows[2].numbers() == {"top1": 0.5, "asr": 0.25, **{k: v for k, v in more.items() if abs(v) < 1e300}}


def test_lines_that_hold_no_row_and_a_cut_last_line_are_left_out(tmp_path: Path) -> None:
    good = '{"kind": "bad", "epoch": 1, "step": 3, "bad_steps": 3}'
    bad = ["", "[]", "nonsense", '{"kind": "other", "epoch": 1, "step": 1}', '{"kind": "bad", "epoch": 1, "step": "x"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([good, *bad, good, good[:30]]))
    rows, damaged = read_journal(tmp_path / "metrics.jsonl")
    assert ([row.step for row in rows], damaged) == ([3, 3], [3, 4, 5, 6])
    with pytest.raises(Damaged, match="line 3 is not as it was written"):
        read_rows(tmp_path / "metrics.jsonl")


def test_records_load_neither_torch_nor_anything_of_the_engine() -> None:
    words = "import sys, records.card, records.ending, records.rows, records.study_json; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'pydantic'" in loaded
    assert not any(f"'{name}'" in loaded for name in ("torch", "numpy", "engine", "deepspeed", "data.shards"))
