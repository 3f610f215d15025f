"""A checkpoint is committed whole, verified before it is used, never lost to a full disk, and goes on at any number of
processes and any ZeRO stage."""

import errno
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
from conftest import ROOT, environment
from disks import disk
from safetensors.torch import load_file, save_file

from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.world import World
from engine.training import checkpoint, learner_state, named_state, tensor_files
from engine.training.journal import Journal
from engine.training.run_state import RunState
from engine.training.tensor_files import Kind, TensorFiles
from records.json_file import read_json, write_json
from records.manifest import Manifest

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
WEIGHTS, LEARNER = "weights-0000-00.safetensors", "learner.safetensors"


def manifest(step: int) -> Manifest:
    return Manifest(step=step, journal=0, data="", zero=0, world=1, spec={}, versions={"torch": "9"}, spent={})


def save(folder: Path, step: int, size: int = 100) -> Path:
    files = {WEIGHTS: {"visual.proj": torch.rand(size)}, LEARNER: {"learned/scale": torch.ones(1)}}
    return checkpoint.save(folder, manifest(step), files)


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-000000002", "step-000000003"]
    path, facts = checkpoint.newest(tmp_path)  # type: ignore[misc]
    assert path.name == "step-000000003"
    assert facts.step == 3
    assert sorted(os.listdir(tmp_path)) == ["step-000000002", "step-000000003"]


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None


@pytest.mark.parametrize("name", [WEIGHTS, LEARNER, "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path: Path, name: str, harm: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    body = bytearray(path.read_bytes())
    if harm == "flip":
        body[len(body) // 2] ^= 4
        path.write_bytes(body)
    elif harm == "cut":
        path.write_bytes(body[: len(body) // 2])
    else:
        path.unlink()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest[0].name == "step-000000001"
    assert len(list(tmp_path.glob("aside-*"))) == 1


def test_when_none_verifies_the_run_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    (save(tmp_path, 1) / LEARNER).write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* verifies \(1 set aside\)"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize(
    "fields", [{"files": {"../weights": [1, "0" * 64]}}, {"zero": 4}, {"step": "2"}, {"files": {"a": [1, "x"]}}, {"more": 1}]
)
def test_a_manifest_of_another_form_does_not_verify(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = save(tmp_path, 2) / Manifest.FILE
    write_json(path, {**(read_json(path, "") or {}), **fields})
    fault, found = checkpoint.verify(path.parent)
    assert fault.startswith("manifest: ")
    assert found is None


@pytest.mark.parametrize(("written", "words"), [(1, "an earlier version"), (3, "another version")])
def test_a_checkpoint_of_another_version_is_refused_in_one_sentence_and_kept(
    tmp_path: Path, written: int, words: str
) -> None:
    """Format 1 is DeepSpeed's own files, whose manifest did not tell a format."""
    path = save(tmp_path / "run/checkpoints", 1)
    fields = read_json(path / Manifest.FILE, "") or {}
    fields = {**fields, "format": 3} if written == 3 else {key: value for key, value in fields.items() if key != "format"}
    write_json(path / Manifest.FILE, fields)
    with pytest.raises(UserError) as error:
        checkpoint.newest(tmp_path / "run/checkpoints")
    assert str(error.value) == (
        f"{path} was written by {words} of Antidote (checkpoint format {written}, with torch 9; this version reads 2); "
        f"finish the run with that version, or delete {tmp_path / 'run'} to begin it anew"
    )
    assert checkpoint.committed(tmp_path / "run/checkpoints") == [path]


def test_a_killed_save_leaves_what_was_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".staging-000000002").mkdir()
    (tmp_path / ".staging-000000002" / "half").write_bytes(b"x")
    assert checkpoint.newest(tmp_path)[0].name == "step-000000001"  # type: ignore[index]
    save(tmp_path, 2)
    assert not list(tmp_path.glob(".staging*"))


@pytest.mark.parametrize("before", [0, 1])
def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    if before:
        save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    left = "the checkpoints before it are intact" if before else "there is none before it"
    with pytest.raises(UserError, match=f"disk full while saving .* 404 bytes are needed and 10 are free; {left}"):
        save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step-000000001"] * before


def test_a_disk_that_fills_during_the_save_is_said_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def write_file(path: Path, tensors: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", write_file)
    with pytest.raises(UserError, match="disk full while saving"):
        save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step-000000001"]
    assert checkpoint.newest(tmp_path)[0].name == "step-000000001"  # type: ignore[index]


def test_a_really_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large a file on a disk of 2 MB, whose space another program takes in the meantime."""
    monkeypatch.setattr(checkpoint, "_make_room", lambda folder, staging, needed: staging.mkdir())
    folder = tmp_path / "disk"
    with disk(folder, 2048):
        with pytest.raises(UserError, match="disk full while saving"):
            save(folder, 1, 1 << 20)
        assert not os.listdir(folder)
        assert not still_open(folder), "by whom"


def test_on_a_full_disk_the_journal_closes_all_that_it_has_open() -> None:
    closed: list[str] = []

    def full() -> None:
        closed.append("file")
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal.__new__(Journal)
    journal.first, journal.file = True, SimpleNamespace(close=full)  # type: ignore[assignment]
    journal.progress = SimpleNamespace(end=lambda: closed.append("progress"))  # type: ignore[assignment]
    journal.board = SimpleNamespace(close=lambda: closed.append("board"))
    with pytest.raises(OSError, match="No space"):
        journal.close()
    assert closed == ["progress", "file", "board"]


def still_open(folder: Path) -> list[str]:
    """What processes hold in a folder: open files, maps, where they are."""
    out = []
    for path in (*Path("/proc").glob("[0-9]*/fd/*"), *Path("/proc").glob("[0-9]*/cwd")):
        with suppress(OSError):
            if os.readlink(path).startswith(str(folder)):
                out.append(f"{path}: {os.readlink(path)}")
    for path in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            out += [f"{path}: {line}" for line in path.read_text().splitlines() if str(folder) in line]
    return out


def test_a_pickle_in_a_checkpoint_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/sprung",)

    torch.save({"learned/scale": Trap()}, tmp_path / LEARNER)
    with pytest.raises(UserError, match="is no whole safetensors file"):
        TensorFiles([tmp_path / LEARNER])
    assert not (tmp_path / "sprung").exists()


# tensors in files


def test_files_are_of_a_bounded_size_and_parts_are_read_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 100)
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 2, 2), "b": (40,), "c": (), "d": (5, 3), "e": (1, 7), "f": (0, 3)}
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tensors["g"] = torch.tensor(7)
    files = tensor_files.in_files("weights-0000", tensors)
    assert [list(content) for content in files.values()] == [["a"], ["b"], ["c", "d", "e"], ["f", "g"]] or all(
        len(content) == 1 or sum(value.nbytes for value in content.values()) <= 100 for content in files.values()
    )
    assert len(files) > 2
    for name, content in files.items():
        checkpoint.write_file(tmp_path / name, content)
    found = TensorFiles(tmp_path.glob("*.safetensors"))
    assert found.kinds() == {name: Kind(value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    for name, value in tensors.items():
        assert torch.equal(found.whole(name), value)
        for start in range(value.numel() + 1):
            for stop in range(start, value.numel() + 1):
                assert torch.equal(found.flat(name, slice(start, stop)), value.flatten()[start:stop]), (name, start, stop)


def test_two_files_with_the_same_name_are_refused(tmp_path: Path) -> None:
    for file in ("1", "2"):
        save_file({"visual.proj": torch.ones(1)}, tmp_path / file)
    with pytest.raises(UserError, match=r"holds visual\.proj, which another file beside it holds too"):
        TensorFiles([tmp_path / "1", tmp_path / "2"])


def test_files_may_be_read_by_whoever_may_read_their_folder(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {path.stat().st_mode & 0o666}


# weights and moments by name

STAGES = range(4)


def content(folder: Path, *stems: str) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint in a folder, read by safetensors alone."""
    newest = max(folder.glob("step-*"))
    out: dict[str, torch.Tensor] = {}
    for path in newest.iterdir():
        assert path.suffix == ".safetensors" or path.name == "manifest.json", "nothing pickled"
        if path.name.startswith(stems or ("weights", "optimizer", "learner")):
            out |= load_file(path)
    return out


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of what is not equal to the bit."""
    assert a.keys() == b.keys()
    return [name for name in a if a[name].shape != b[name].shape or a[name].numpy().tobytes() != b[name].numpy().tobytes()]


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.allclose(a[name].float(), b[name].float(), rtol=1e-4, atol=1e-5)]


Turns = Callable[..., Path]


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Turns:
    """Runs turns of tests/checkpoints.py on so many processes, in a folder that all tests of this file share."""
    folder = tmp_path_factory.mktemp("turns")

    @cache
    def run(processes: int, *words: str) -> Path:
        script = [sys.executable, str(ROOT / "tests/checkpoints.py"), str(folder), *words]
        done = forked.run_ranks(script, processes, env=environment(OMP_NUM_THREADS="1"))
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run


def on_one(turns: Turns) -> Path:
    """At each stage, on one process: two steps (one-S) and another (one-S-more), the latter also from the checkpoint of the
    former (one-S-again)."""
    words = [part for s in STAGES for part in (f"{s},,2,one-{s},1,one-{s}-more", f"{s},one-{s},1,one-{s}-again")]
    return turns(1, *words)


def on_two(turns: Turns) -> Path:
    """At each stage, on two processes: from the one process's checkpoint of the next stage (two-S), a step (two-S-more)."""
    on_one(turns)
    return turns(2, *(f"{s},one-{(s + 1) % 4},0,two-{s},1,two-{s}-more" for s in STAGES))


@pytest.mark.parametrize("stage", STAGES)
def test_the_next_step_starts_from_what_was_loaded_to_the_bit(turns: Turns, stage: int) -> None:
    folder = on_one(turns)
    again, more = content(folder / f"one-{stage}-again"), content(folder / f"one-{stage}-more")
    assert differing(again, more) == []
    assert differing(more, content(folder / f"one-{stage}")), "a step changes something"
    assert more["visual.conv1.weight/step"] == 3
    assert more["visual.bn1.running_mean"].abs().max() > 0


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_load_what_one_wrote_at_another_stage_and_go_on(turns: Turns, stage: int) -> None:
    folder = on_two(turns)
    assert differing(content(folder / f"two-{stage}"), content(folder / f"one-{(stage + 1) % 4}")) == []
    assert far(content(folder / f"two-{stage}-more"), content(folder / "one-0-more")) == []
    names = {path.name for path in max((folder / f"two-{stage}").glob("step-*")).iterdir()}
    parts = {f"{stem}-{rank:04d}-00.safetensors" for stem in ("weights", "optimizer") for rank in range(2)}
    assert names == {*parts, LEARNER, "manifest.json"}, "each rank writes its share"


def test_one_process_loads_what_two_wrote_at_another_stage(turns: Turns) -> None:
    on_two(turns)
    folder = turns(1, "1,two-3,0,back-1", "0,two-2,0,back-0", "3,two-0,0,back-3")
    for here, there in (("back-1", "two-3"), ("back-0", "two-2"), ("back-3", "two-0")):
        assert differing(content(folder / here), content(folder / there)) == []


@pytest.mark.slow
def test_four_processes_load_what_two_wrote_at_every_stage_and_one_what_four_wrote(turns: Turns) -> None:
    on_two(turns)
    pairs = [(before, stage) for before in STAGES for stage in STAGES]
    folder = turns(
        4, *(f"{stage},two-{before},0,four-{before}{stage},1,four-{before}{stage}-more" for before, stage in pairs)
    )
    turns(1, *(f"{before},four-{before}{stage},0,last-{before}{stage}" for before, stage in pairs))
    for before, stage in pairs:
        assert differing(content(folder / f"four-{before}{stage}"), content(folder / f"two-{before}")) == []
        assert differing(content(folder / f"last-{before}{stage}"), content(folder / f"two-{before}")) == []
        assert far(content(folder / f"four-{before}{stage}-more"), content(folder / "one-0-more")) == []


def test_open_clip_reads_the_weights_of_a_checkpoint(turns: Turns) -> None:
    """As docs/promises.md says, with open_clip and safetensors alone, from the shards of two processes at stage 3."""
    import open_clip

    newest = max((on_two(turns) / "two-3").glob("step-*"))
    open_clip.add_model_config(ROOT / "configs/models")
    model = open_clip.create_model("test-resnet")
    state: dict[str, torch.Tensor] = {}
    for path in newest.glob("weights-*.safetensors"):
        state |= load_file(path)
    model.load_state_dict(state)  # strict
    assert torch.equal(model.state_dict()["visual.bn1.running_mean"], state["visual.bn1.running_mean"])
    assert not torch.equal(state["visual.bn1.running_mean"], torch.zeros(2))
    rows = model.eval().encode_image(torch.rand(2, 3, 32, 32))
    assert torch.isfinite(rows).all()


@pytest.mark.parametrize(
    ("stem", "change", "words"),
    [
        ("weights", {"visual.proj": None}, r"visual\.proj is missing, expected float32 \[32, 32\]"),
        ("weights", {"more": torch.ones(2)}, r"more is float32 \[2\], expected none"),
        ("weights", {"visual.proj": torch.ones(3)}, r"visual\.proj is float32 \[3\], expected float32 \[32, 32\]"),
        ("optimizer", {"visual.proj/step": None}, r"visual\.proj/step is missing, expected float32 \[\]"),
        ("optimizer", {"visual.proj/exp_avg": torch.ones(32, 32).half()}, r"16 \[32, 32\], expected float32 \[32, 32\]"),
        ("learner", {"learned/scale": None}, r"learned/scale is missing, expected float32 \[1\]"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_tensors_is_refused_before_anything_is_set(
    tmp_path: Path, stem: str, change: dict[str, torch.Tensor | None], words: str
) -> None:
    from test_learner import batch, everything, make_learner, same

    learner = make_learner({"kind": "mmcl"})
    learner.learn(batch((1, 1), ALONE), 0)
    files = learner_state.share(learner, ALONE)
    name = next(name for name in files if name.startswith(stem))
    files[name] = {key: value for key, value in (files[name] | change).items() if value is not None}
    path = checkpoint.save(tmp_path / "checkpoints", manifest(1), files)
    fresh = make_learner({"kind": "mmcl"})
    before = everything(fresh)
    with pytest.raises(
        UserError, match=f"does not fit this model: 1 tensors differ, first .*{words}; go on with the versions"
    ):
        learner_state.restore(fresh, path, ALONE)
    assert same(everything(fresh), before) == []
    assert not fresh.tower_optimizer.adamw.state


class Counting(torch.optim.Optimizer):
    """Counts steps as DeepSpeed's FusedAdam does: in whole numbers, and in the last parameter of a group alone."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    moments = {key: torch.ones_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                    self.state[parameter] = {"step": 0, **moments}
            self.state[group["params"][-1]]["step"] += 1


def test_steps_are_kept_by_name_and_set_in_the_form_of_the_kind_of_adam() -> None:
    from test_learner import make_learner

    learner = make_learner({"kind": "mmcl"})
    towers = learner.tower_optimizer
    towers.adamw = Counting(towers.towers.parameters(), {})
    everyone = named_state.on_first_rank(towers, ALONE)
    assert named_state.moments(towers, everyone, ALONE) == {}
    for _ in range(3):
        towers.adamw.step()
    moments = named_state.moments(towers, everyone, ALONE)
    steps = {name: float(value) for name, value in moments.items() if name.endswith("/step")}
    assert set(steps.values()) == {3.0}
    for make, kind in ((lambda p: Counting(p, {}), int), (torch.optim.AdamW, torch.Tensor)):
        towers.adamw = make(towers.towers.parameters())  # type: ignore[no-untyped-call]
        counts = {name.removesuffix("/step"): step for name, step in steps.items()}
        named_state.set_moments(towers, lambda name, own: moments[name].flatten()[own], counts, ALONE)
        assert {type(state["step"]) for state in towers.adamw.state.values()} == {kind}
        assert {float(state["step"]) for state in towers.adamw.state.values()} == {3.0}
        again = named_state.moments(towers, everyone, ALONE)
        assert differing(again, moments) == []


def test_ranks_that_learned_different_things_beside_the_towers_save_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from test_learner import make_learner

    learner = make_learner({"kind": "mmcl"})
    monkeypatch.setattr(collectives, "gather_objects", lambda value: [(value[0], {key: "0" for key in value[1]}), value])
    with pytest.raises(UserError, match="ranks disagree: rank 1 on .* has state beside the towers"):
        learner_state.share(learner, ALONE)


def test_what_a_model_draws_depends_on_seed_step_and_rank_alone() -> None:
    def drawn(seed: int, step: int, rank: int) -> float:
        inputs = SimpleNamespace(run=SimpleNamespace(spec=SimpleNamespace(seed=seed)))
        RunState.seed(SimpleNamespace(inputs=inputs, world=SimpleNamespace(rank=rank)), step)  # type: ignore[arg-type]
        return torch.rand(1).item()

    with torch.random.fork_rng():
        assert drawn(1, 2, 3) == drawn(1, 2, 3)
        assert len({drawn(1, 2, 3), drawn(2, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4)}) == 4


def test_shares_are_balanced_by_bytes() -> None:
    from test_learner import make_learner

    towers = make_learner({"kind": "mmcl"}).tower_optimizer
    of_weights, of_moments = named_state.kinds(towers, 0)
    sizes = {name: kind.nbytes for name, kind in (of_weights | of_moments).items()}
    owner = named_state.owners(towers, World(0, 3, 0, 3, torch.device("cpu")))
    load = [sum(size for name, size in sizes.items() if owner[name] == rank) for rank in range(3)]
    assert max(load) - min(load) < 0.01 * max(load)
