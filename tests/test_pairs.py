"""What the runs of a study share is made once, belongs to the study's own object, and says what is missing."""

from pathlib import Path

import pytest
import torch

from configs.plan import runs
from configs.spec import load
from data.refusal import UserError
from data.store import NoShards
from data.synthetic import SyntheticWorld, write_world
from engine.distributed.world import World
from engine.training.inputs import StudyInputs
from engine.training.pairs import StudyPairs

ONE = World(0, 1, 0, 1, torch.device("cpu"))


def test_runs_of_a_study_share_index_plan_and_sets_and_two_studies_none(spec: Path, tmp_path: Path) -> None:
    loaded = load(spec)
    first, clean = (next(run for run in runs(loaded.points) if run.stage == stage) for stage in ("pretrain", "clean"))
    shared = StudyInputs(tmp_path / "runs/tiny", ONE)
    pretraining, cleaning = shared.pairs.of(first), shared.pairs.of(clean)
    assert cleaning.index is pretraining.index
    assert cleaning.plan is None
    assert shared.pairs.of(first).plan is pretraining.plan is not None
    assert shared.pairs.of(clean).chosen is cleaning.chosen is not None
    assert not set(cleaning.chosen.tolist()) & set(pretraining.plan.entries)
    sets = shared.eval_sets(loaded.spec)
    assert shared.eval_sets(loaded.spec) is sets
    other = load(spec, ["seed=4"]).spec
    assert shared.eval_sets(other) is not sets
    assert shared.eval_sets(loaded.spec) is not sets, "only the last ones are kept"
    assert StudyPairs(tmp_path / "runs/tiny", ONE).of(first).plan is not pretraining.plan


def test_of_many_plans_and_clean_sets_the_last_are_kept(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over ten thousand seeds would else hold as many masks of all pairs; made again, they are the same."""
    monkeypatch.setattr("engine.training.pairs.KEPT", 2)
    plan, pairs = runs(load(spec, ["sweep={seed: [1, 2, 3]}"]).points), StudyPairs(tmp_path / "runs/tiny", ONE)
    made = [pairs.of(run) for run in plan]
    assert (len(pairs._plans), len(pairs._clean_rows), len(pairs._indices)) == (2, 2, 1)
    assert pairs.of(plan[2]).plan is pairs.of(plan[2]).plan, "the one before is at hand"
    for run, first in zip(plan, made, strict=True):
        again = pairs.of(run)
        assert (again.plan and again.plan.digest) == (first.plan and first.plan.digest)
        assert again.chosen is first.chosen or (again.chosen == first.chosen).all()  # type: ignore[union-attr]


def test_a_twin_is_cleaned_with_the_pairs_of_its_poisoned_model_and_no_poison(spec: Path, tmp_path: Path) -> None:
    loaded = load(spec, ["attack.twin=first", "attack.clean_twin=true", "data.clean.leftover=2"])
    pretraining, _, cleaning, control = map(StudyPairs(tmp_path / "runs/tiny", ONE).of, runs(loaded.points))
    assert pretraining.plan is not None
    assert len(cleaning.plan or ()) == 2
    assert control.plan is None
    assert control.chosen is cleaning.chosen is not None
    assert len(set(control.chosen.tolist()) & set(pretraining.plan.entries)) == 2


SOURCES = (
    "data.pretrain={{sources: {{a: {{shards: '{world}/train/0000[01].tar'}}, b: {{shards: '{world}/train/0000[23].tar'}}}}}}"
)


@pytest.mark.parametrize("named", [False, True])
def test_clean_shards_are_held_against_the_pretraining_whatever_its_sources_are_called(
    spec: Path, world: Path, tmp_path: Path, named: bool
) -> None:
    """Of 192 pairs 12 are poisoned; keys of named sources have their name before them."""
    sets = [f"data.clean.shards={world}/train/*.tar", *([SOURCES.format(world=world)] if named else [])]

    def chosen(*more: str) -> set[int]:
        every = runs(load(spec, [*sets, "data.clean.pairs=null", *more]).points)
        pairs = StudyPairs(tmp_path / "runs/tiny", ONE).of(every[-1])
        assert pairs.chosen is not None
        return set(pairs.chosen.tolist())

    with pytest.raises(UserError, match="12 of the 192 pairs of data.clean.shards"):
        chosen()
    with pytest.raises(UserError, match="held_out is true, but 192 of the 192 pairs"):
        chosen("data.clean.held_out=true")
    clean = StudyPairs(tmp_path / "runs/tiny", ONE)
    loaded = load(spec, [*sets, "data.clean.pairs=null", "data.clean.leftover=0"])
    pretraining = clean.of(runs(loaded.points)[0])
    assert pretraining.plan is not None
    poisoned = {pretraining.index.keys[sample].rpartition(":")[2] for sample in pretraining.plan.entries}
    index = clean.of(runs(loaded.points)[-1]).index
    assert chosen("data.clean.leftover=0") == {sample for sample in range(192) if index.keys[sample] not in poisoned}
    assert len(chosen("data.clean.leftover=2")) == 182


def test_pairs_of_another_set_that_are_numbered_alike_are_not_taken_for_a_named_sources(
    spec: Path, world: Path, tmp_path: Path
) -> None:
    write_world(tmp_path / "other", SyntheticWorld(pairs=96, tests=32, pixels=32, seed=5, pairs_per_shard=48, captioned=0))
    sets = [f"data.clean.shards={tmp_path}/other/train/*.tar", SOURCES.format(world=world), "data.clean.held_out=true"]
    pairs = StudyPairs(tmp_path / "runs/tiny", ONE).of(runs(load(spec, [*sets, "data.clean.pairs=null"]).points)[-1])
    assert pairs.chosen is None or len(pairs.chosen) == 96


def test_missing_shards_are_a_kind_of_their_own_and_name_the_command_that_makes_them(spec: Path, tmp_path: Path) -> None:
    pairs = StudyPairs(tmp_path / "runs/tiny", ONE)
    absent = "data.pretrain.shards=none/*.tar"
    with pytest.raises(NoShards, match="nothing matches.*; make them with: make shards$"):
        pairs.pretraining(load(spec, [absent, "data.made_by=make shards"]).spec)
    with pytest.raises(NoShards, match="check the path$"):
        pairs.pretraining(load(spec, [absent]).spec)


def test_an_attack_on_sources_with_weights_has_a_plan(spec: Path, world: Path, tmp_path: Path) -> None:
    sources = f"{{a: {{shards: '{world}/train/0000[01].tar', weight: 3}}, b: {{shards: '{world}/train/0000[23].tar'}}}}"
    loaded = load(spec, [f"data.pretrain={{sources: {sources}}}"])
    plan = StudyPairs(tmp_path / "runs/tiny", ONE).of(runs(loaded.points)[0]).plan
    assert plan is not None
    assert len(plan) == 12


def test_the_rank_that_shows_progress_has_a_heartbeat_while_it_indexes(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    monkeypatch.setattr("engine.training.pairs.heartbeat", lambda: beats.append(1))
    StudyPairs(tmp_path / "runs/tiny", ONE).pretraining(load(spec).spec)
    assert len(beats) == 4 + 4  # as each shard is indexed, and as some of its members are compared
