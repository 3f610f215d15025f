"""The one loop, around a learner that only looks at its batches."""

import json
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pipeline import pairs_of

from data.loader import Workers
from data.patience import Left
from data.pipeline import Batch, batches
from data.refusal import UserError
from data.shards import read_index
from engine.distributed.world import World
from engine.evaluation.encode import Cut
from engine.training.bad_samples import BadBatches
from engine.training.finite import refuse_not_finite
from engine.training.learner import Outcome
from engine.training.loop import Stopped, train
from records.manifest import BadSteps

ONE = World(0, 1, 0, 1, torch.device("cpu"))


def run_of(
    pairs: Any, learn: Callable[[Batch, int], Outcome], measure: Callable[[float, int], None]
) -> tuple[Any, list[Any]]:
    """(a run of two epochs with a row of the journal every third step, its rows)."""
    rows: list[Any] = []
    machine = SimpleNamespace(log_steps=3, max_bad_steps=10, save_minutes=60)
    run = SimpleNamespace(spec=SimpleNamespace(machine=machine), settings=SimpleNamespace(measure_steps=None))
    head = SimpleNamespace(parameters={"scale": torch.zeros(1)})
    return SimpleNamespace(
        world=ONE,
        inputs=SimpleNamespace(pairs=pairs, run=run, folder=Path("nowhere")),
        learner=SimpleNamespace(learn=learn, head=head),
        engine=SimpleNamespace(get_global_grad_norm=lambda: None),
        journal=SimpleNamespace(row=lambda kind, **numbers: rows.append((kind, numbers))),
        bad_batches=BadBatches(Path("nowhere"), ONE, None),
        pair_losses=None,
        begin_epoch=lambda epoch: None,
        seed=lambda step: None,
        measure=measure,
    ), rows


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_gone_when_its_step_is_done(world: Path, tmp_path: Path, workers: int) -> None:
    """Before the next step, and before a measure; the journal still says how many pairs there were and how many poisoned."""
    pairs = pairs_of(read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False))
    seen: list[Any] = []
    poisoned: list[int] = []

    def learn(batch: Batch, step: int) -> Outcome:
        assert all(one() is None for one in seen)
        seen.extend(weakref.ref(one) for one in (batch, batch.images, batch.tokens))
        poisoned.append(int(batch.poisoned.sum()))
        return Outcome({"loss": torch.tensor(1.0)}, torch.tensor(True), 0.1)

    def measure(epoch: float, step: int) -> None:
        assert all(one() is None for one in seen)
        measured.append(step)

    measured: list[int] = []
    run, rows = run_of(pairs, learn, measure)
    train(run, batches(pairs, 2, 0, Workers(workers)), lambda: False, lambda epoch: None)
    assert measured == [8, 16]
    assert len(seen) == 3 * 16
    assert [numbers["step"] for _, numbers in rows] == [3, 6, 8, 9, 12, 15, 16]
    assert [numbers["poisoned"] for _, numbers in rows] == [poisoned[numbers["step"] - 1] for _, numbers in rows]
    assert sum(poisoned) == 20


@pytest.mark.parametrize("due", [None, 4, 6, 8])
def test_a_stop_amid_an_evaluation_saves_and_leaves_the_evaluation_to_be_done(tmp_path: Path, due: int | None) -> None:
    """With a row every third step, an evaluation every second and epochs of eight steps; resumed, the rows are the same."""
    pairs, asked = SimpleNamespace(steps=8), [False]
    taken = [True, True, False, False, False, True, True, True]
    saved: list[Any] = []

    def measure(epoch: float, step: int) -> None:
        if step == due and not saved:
            asked[0] = True
            raise Cut
        rows.append(("measure", {"epoch": epoch, "step": step}))

    def learn(batch: Any, step: int) -> Outcome:
        return Outcome({"loss": torch.tensor(1.0 + step)}, torch.tensor(taken[step]), 0.1)

    def save(step: int, is_due: bool = False) -> None:
        saved.append((step, is_due, run.bad_batches.committed()))

    def feed(start: int) -> Iterator[tuple[int, Any]]:
        for step in range(start, 8):
            skipped = [("shard", f"key {step}", "cause")]
            yield step, SimpleNamespace(keys=[f"key {step}"], samples=[step], poisoned=torch.zeros(1), skipped=skipped)

    run, rows = run_of(pairs, learn, measure)
    listed_pairs: list[Any] = []
    run.inputs.run.settings.measure_steps, run.save = 2, save
    run.bad_samples = SimpleNamespace(add=lambda entries, step: listed_pairs.extend(entries))
    run.bad_batches = BadBatches(tmp_path, ONE, BadSteps())
    with pytest.raises(Stopped) if due else nullcontext():
        train(run, feed(0), lambda: asked[0], lambda epoch: None)
    if due is not None:
        ((step, is_due, bad),) = saved
        assert (step, is_due, bad.total, bad.unlogged) == (due, True, 2 if due == 4 else 3, int(due == 4))
        asked[0], run.bad_batches = False, BadBatches(tmp_path, ONE, bad)
        train(run, feed(due), lambda: asked[0], lambda epoch: None, due)
    told = [(kind, numbers["step"], numbers.get("loss"), numbers.get("bad_steps")) for kind, numbers in rows]
    assert told == [
        ("measure", 2, None, None), ("step", 3, 2.0, 1), ("measure", 4, None, None), ("step", 6, 6.0, 2),
        ("measure", 6, None, None), ("step", 8, 8.0, None), ("measure", 8, None, None),
    ]  # fmt: skip
    assert listed(tmp_path) == [3, 4, 5]
    assert len(listed_pairs) == 8


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stop_while_data_is_waited_for_is_heeded_at_once(tmp_path: Path, ranks: int) -> None:
    """One process saves where it stands, amid a row of the journal; of several the others can't come there."""

    def learn(batch: Any, step: int) -> Outcome:
        return Outcome({"loss": torch.tensor(1.0)}, torch.tensor(step != 3), 0.1)

    def feed() -> Iterator[tuple[int, Any]]:
        for step in range(5):
            yield (
                step,
                SimpleNamespace(
                    keys=["key"], samples=[step], poisoned=torch.zeros(1), skipped=[("shard", str(step), "cause")]
                ),
            )
        raise Left

    run, rows = run_of(SimpleNamespace(steps=8), learn, lambda epoch, step: None)
    saved: list[Any] = []
    listed_pairs: list[Any] = []
    run.world = World(0, ranks, 0, ranks, torch.device("cpu"))
    run.save = lambda step, due=False: saved.append((step, due, run.bad_batches.committed()))
    run.bad_samples = SimpleNamespace(add=lambda entries, step: listed_pairs.extend(entries))
    run.bad_batches = BadBatches(tmp_path, ONE, BadSteps())
    with pytest.raises(Stopped if ranks == 1 else Left):
        train(run, feed(), lambda: False, lambda epoch: None)
    if ranks == 1:
        ((step, due, bad),) = saved
        assert (step, due, bad.in_a_row, bad.total, bad.unlogged) == (5, False, 0, 1, 1)
        assert len(listed_pairs) == 5
    else:
        assert not saved


def listed(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "bad_batches.jsonl").read_text().splitlines()]


def test_steps_that_were_not_taken_are_counted_over_restarts_and_listed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the checkpoint has them: what came after it comes again; what was damaged meanwhile is named."""
    before = BadBatches(tmp_path, ONE, BadSteps())
    for step, taken in enumerate((True, False, True, False, False), 1):
        before.count(taken, step, [f"key {step}"])
    saved = before.committed()
    assert (saved.in_a_row, saved.total) == (2, 3)
    before.count(False, 6, ["killed after this one"])
    assert listed(tmp_path) == [2, 4, 5, 6]
    after = BadBatches(tmp_path, ONE, saved)
    assert listed(tmp_path) == [2, 4, 5]
    after.count(False, 6, ["killed after this one"])
    assert (after.in_a_row, after.total) == (3, 4)
    assert listed(tmp_path) == [2, 4, 5, 6]
    after.refuse(4, 6)
    with pytest.raises(UserError, match=r"^the loss was not finite in the last 3 steps, to step 6; none of them was taken"):
        after.refuse(3, 6)
    assert capsys.readouterr().err == ""
    kept = after.committed()
    path, body = tmp_path / "bad_batches.jsonl", (tmp_path / "bad_batches.jsonl").read_bytes()
    draw = random.Random(0)
    for _ in range(40):
        at = draw.randrange(len(body) - 1)
        path.write_bytes(body[:at] + bytes([body[at] ^ 1 << draw.randrange(7)]) + body[at + 1 :])
        BadBatches(tmp_path, ONE, kept)
        assert f"{path} is damaged: what it lists there (line " in capsys.readouterr().err
    path.unlink()
    BadBatches(tmp_path, ONE, kept)
    assert "is damaged: what it lists there (line 1) is not" in capsys.readouterr().err
    path.write_bytes(body)
    BadBatches(tmp_path, ONE, BadSteps())
    assert listed(tmp_path) == [], "a run that begins anew"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("bad", "steps", "refused"), [(0, 1, False), (1, 1, True), (6, 12, False), (7, 12, True), (11, 12, True)]
)
def test_a_run_most_of_whose_steps_were_not_taken_does_not_finish(
    tmp_path: Path, bad: int, steps: int, refused: bool
) -> None:
    batches_ = BadBatches(tmp_path, ONE, BadSteps(total=bad))
    words = f"not finite in {bad} of {steps} steps, which were not taken, so the run does not"
    with pytest.raises(UserError, match=words) if refused else nullcontext():
        batches_.refuse_end(steps)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found_among_many(number: float, dtype: torch.dtype) -> None:
    tensors = {"a": torch.zeros(100, dtype=dtype), "b": torch.zeros(3, 7, dtype=dtype), "count": torch.tensor(3)}
    refuse_not_finite(tensors, "here", "do that")
    tensors["b"][1, 3] = number
    with pytest.raises(UserError, match=r"^here: b holds numbers that are not finite; do that$"):
        refuse_not_finite(tensors, "here", "do that")
