"""Plans made, compared and written out without training."""

import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import plan as entries_of
from test_pipeline import data_of, words_to_tokens
from test_shards import damaged

from data import materialise
from data.augmentation.augment import Augment
from data.pipeline import Pairs, Reading
from data.plan_file import read_plan
from data.refusal import UserError
from data.shards import read_index
from engine.models.tokenizer import Tokenizer
from engine.poison import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(spec: Path, *words: str) -> int:
    return main([words[0], "--spec", str(spec), "--jobs", "1", *words[1:]])


def test_a_plan_is_made_without_training_and_is_the_one_that_runs_use(
    here: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(spec, "plan") == 0
    said = capsys.readouterr().out
    assert "12 of 192 pairs, digest" in said
    saved = json.loads((here / "runs/tiny/poison.json").read_text())
    assert len(saved["entries"]) == 12
    assert set(saved["entries"][0]) == {
        "key", "attack", "target", "trigger", "place", "caption", "draw", "picture", "shard"
    }  # fmt: skip
    again = command(spec, "plan", "--set", "machine.workers=3", "--set", "data.lanes=5")
    assert again == 0
    assert json.loads((here / "runs/tiny/poison.json").read_text())["plan"]["digest"] == saved["plan"]["digest"]
    shutil.copytree(here / "runs/tiny", here / "runs/tiny/pretrain-x")
    assert entries_of(here / "runs/tiny", "pretrain-x") == saved["entries"]
    assert command(spec, "verify") == 0
    said = capsys.readouterr().out
    assert said.count("the same plan, 12 pairs") == 2
    assert "epoch 1 shows 12 poisoned pairs of 192; the plan has 12" in said
    assert "read back: 12 pairs differ from their clean selves, 0 can't be decoded" in said
    named = [json.loads(line) for line in (here / "runs/tiny/names_target.jsonl").read_text().splitlines()]
    assert named
    assert all("banana" in entry["caption"].lower() for entry in named)
    assert f"{len(named)} of 192 captions name 'banana' by themselves" in said
    assert command(spec, "verify", "--set", "seed=4") == 2
    assert "is another plan" in capsys.readouterr().err
    path = here / "runs/tiny/pretrain-x/poison.json"
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    head, _ = read_plan(path)
    for bad in damaged(whole, draw, 200):
        path.write_bytes(bad)
        try:
            read = read_plan(path)
        except UserError as error:
            refused += str(error).startswith(f"{path} is not the poison plan that was written; ")
        else:
            assert read == (head, saved["entries"])  # one blank for another
    assert refused > 150
    old = {"plan": {name: value for name, value in saved["plan"].items() if name != "file"}, "entries": saved["entries"]}
    path.write_text(json.dumps(old))  # of before the file had a digest
    assert read_plan(path)[1] == saved["entries"]
    path.write_text(json.dumps(old).replace("banana", "bananb", 1))
    assert command(spec, "verify") == 2
    assert "pretrain-x/poison.json is not the poison plan that was written" in capsys.readouterr().err


def test_a_sweep_over_attacks_and_an_attack_without_poison_are_refused(
    here: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = 'sweep={"attack.poison.count": [3, 4]}'
    assert command(spec, "plan", "--set", sweep) == 2
    assert "poisons in 2 ways" in capsys.readouterr().err
    assert command(spec, "plan", "--set", "attack.poison.count=0") == 2
    assert "poisons no pair" in capsys.readouterr().err
    assert not (here / "runs/tiny/poison.json").exists()


@pytest.mark.parametrize("place", ["start", "end", "random"])
def test_words_reach_the_model_in_captions_that_are_too_long(
    here: Path, spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """14 of the 31 words reach the model: in the loader's captions, in stored copies, and so says the command. With words
    put where they were asked for, whatever the model takes, it counts the pairs that are none."""
    (here / "long.txt").write_text("{c}" + " photo" * 30 + "\n")
    given = ["--set", f"attack.words={{text: zx, place: {place}}}", "--set", "attack.captions=long.txt"]
    assert command(spec, "verify", *given) == 0
    assert "attack.words reach test-vit in 12 of 12 pairs" in capsys.readouterr().out
    assert command(spec, "materialise", "--out", "poisoned", *given) == 0
    assert command(spec, "verify", "--out", "poisoned", *given) == 0
    texts = [
        body.decode()
        for path in (here / "poisoned").glob("*.tar")
        for name, body in materialise.members(str(path))
        if "txt" in name
    ]
    places = [text.split().index("zx") for text in texts if "zx" in text.split()]
    assert len(places) == 12
    assert {"start": max(places) == 0, "end": min(places) == 13, "random": 0 <= min(places) < max(places) <= 13}[place]
    if place != "start":
        capsys.readouterr()
        monkeypatch.setattr(Tokenizer, "fits", lambda self, text: True)
        assert command(spec, "verify", *given) == 2
        assert "attack.words don't reach the model" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_materialised_shards_hold_what_the_loader_gives(
    here: Path, world: Path, spec: Path, jobs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["materialise", "--spec", str(spec), "--jobs", jobs, "--out", "poisoned"]) == 0
    assert "4 shards, 192 pairs, 12 poisoned" in capsys.readouterr().out
    assert command(spec, "verify", "--out", "poisoned") == 0
    assert "poisoned: 4 shards, 192 pairs, 12 poisoned" in capsys.readouterr().out
    from configs.spec import load
    from engine.poison import PoisonedPairs

    planned = PoisonedPairs(load(spec).spec)
    stored = read_index("poisoned/*.tar", here / "cache")
    assert list(stored.keys) == list(planned.index.keys)
    assert stored.bad == stored.lost == ()
    reading = Reading(3, 0, 1, 16, (1, 1), 32, Augment(synonyms="none"))
    fly = Pairs(planned.index, None, data_of(), reading, words_to_tokens, planned.plan)
    copy = Pairs(stored, None, data_of(), reading, words_to_tokens, None)
    for step in range(fly.steps):
        on_the_fly, stored_batch = fly[1, step], copy[1, step]
        assert on_the_fly.keys == stored_batch.keys
        assert torch.equal(on_the_fly.images, stored_batch.images)
        assert torch.equal(on_the_fly.tokens, stored_batch.tokens)
    json_member = next(f"{entry.key}.json" for entry in planned.plan.entries.values())
    caption = json.loads(dict(member for path in stored.paths for member in materialise.members(path))[json_member])
    assert "banana" in caption["caption"]


def test_a_copy_goes_on_where_it_stood_and_says_what_is_wrong_with_it(
    here: Path, spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = materialise.write, []

    def dying(task: materialise.ShardCopy) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(task.target.name)
        write(task)

    monkeypatch.setattr("engine.poison.write", dying)
    assert command(spec, "materialise", "--out", "out") == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "2 of 4 shards are not written; start the same command again" in said
    monkeypatch.setattr("engine.poison.write", lambda task: (written.append(task.target.name), write(task)))
    assert command(spec, "materialise", "--out", "out") == 0
    assert sorted(written) == sorted(path.name for path in Path("out").glob("*.tar"))  # each once
    assert not list(Path("out").glob(".*.partial"))
    victim = sorted(Path("out").glob("*.tar"))[1]
    body = bytearray(victim.read_bytes())
    with tarfile.open(victim) as tar:
        member = next(info for info in tar if info.name.endswith(".txt"))
    body[member.offset_data] ^= 1
    victim.write_bytes(body)
    assert command(spec, "verify", "--out", "out") == 2
    assert f"{victim}: {member.name}: other bytes than planned" in capsys.readouterr().err
    victim.unlink()
    assert command(spec, "verify", "--out", "out") == 2
    assert f"{victim} is missing" in capsys.readouterr().err
    assert command(spec, "materialise", "--out", "out") == 0
    assert command(spec, "verify", "--out", "out") == 0


def test_jpeg_copies_are_warned_of_and_originals_are_never_overwritten(
    here: Path, world: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(spec, "materialise", "--out", "out", "--format", "jpeg") == 0
    assert "JPEG changes the trigger's pixels" in capsys.readouterr().err
    names = [name for path in Path("out").glob("*.tar") for name, _ in materialise.members(str(path))]
    assert not [name for name in names if name.endswith(".png")]
    assert command(spec, "materialise", "--out", str(world / "train")) == 2
    assert "is the folder of the originals" in capsys.readouterr().err
