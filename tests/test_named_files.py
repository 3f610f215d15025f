"""Files that a spec names: their bytes are part of what a run is."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
import torch
from conftest import SPEC
from test_augment import WORDNET

from configs.named_files import FIELDS, changed, named_files
from configs.plan import runs
from configs.spec import Spec, load
from data.augmentation import eda
from data.augmentation.augment import Augment
from data.augmentation.eda import READ
from data.refusal import UserError
from engine.distributed.world import World
from engine.training import run_state
from records import digests
from records.digests import changed_file
from records.manifest import Manifest

OTHERWISE = {  # fields that name files whose bytes count in another way, or do not count
    "path": "the digest of weights is in the fingerprint",
    "stamp": "has a digest",
    "without": "the digest of its keys is in the fingerprint",
    "scores": "decides no training",
    "key": "of a pair",
    "made_by": "a command",
    "shards": "the index has digests of keys and bytes",
    "to": "weights, by digest",
    "digest": "is one",
    "classes": "a number",
    "synonyms": "a word",
    "wordnet": "a folder, whose files are named where captions are varied by them",
}


@pytest.mark.parametrize(
    "decides",
    [
        {"attack": {"captions": "FILE"}},
        {"attack": {"trigger": {"kind": "tensor", "file": "FILE"}}},
        {"attack": {"trigger": {"kind": "multi", "parts": [{"kind": "blend", "picture": "FILE"}]}}},
        {"attack": {"also": [{"captions": "FILE"}]}},
        {"clean": {"objective": {"kind": "unlearn", "flags": "FILE"}}},
        {"pretrain": {"objective": {"kind": "sum", "parts": [{"objective": {"kind": "deep_cluster", "labels": "FILE"}}]}}},
    ],
)
def test_other_bytes_under_the_same_name_are_seen(tmp_path: Path, decides: dict[str, Any]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    decides = _with(decides, str(file))
    then = named_files(decides)
    assert list(then) == [str(file)]
    assert changed_file(then) is None
    assert changed_file(None) is None
    file.write_bytes(b"two")
    digests.forget()
    assert changed_file(then) == str(file)
    file.unlink()
    assert changed_file(then) is None, "whoever reads it says that it is missing"


def test_a_run_does_not_go_on_with_other_bytes_than_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that comes back from a queue goes on by itself, without what the study's command looks at before."""
    captions = tmp_path / "captions.txt"
    captions.write_text("a {c}\n")
    files = named_files({"attack": {"captions": str(captions)}})
    (tmp_path / "card.json").write_text(json.dumps(samples.card(files=files)))
    manifest = Manifest(step=1, journal=0, data="", zero=0, world=1, spec={}, versions={}, spent={})
    monkeypatch.setattr(run_state.checkpoint, "newest", lambda folder: (folder / "step-1", manifest))
    monkeypatch.setattr(run_state.learner_state, "restore", lambda *of: None)
    pairs = SimpleNamespace(index=SimpleNamespace(digest=""), out_digest=None)
    inputs: Any = SimpleNamespace(folder=tmp_path, pairs=pairs)
    restore = partial(run_state.restore, inputs, SimpleNamespace(), World(0, 1, 0, 1, torch.device("cpu")))  # type: ignore[arg-type]
    assert restore().step == 1
    captions.write_text("the {c}\n")
    digests.forget()
    with pytest.raises(UserError, match="held other bytes; put them back"):
        restore()


@pytest.mark.parametrize("name", sorted(READ))
def test_other_synonyms_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In the folder that the spec names, and in the machine's own, which may have moved."""
    folder, moved = tmp_path / "wordnet", tmp_path / "moved"
    folder.mkdir()
    for file, text in WORDNET.items():
        (folder / file).write_text(text)
    captions = Augment(synonyms="wordnet", wordnet=str(folder))
    monkeypatch.setattr(eda, "_wordnet", lambda given: SimpleNamespace(root=given or str(moved)))
    then = named_files({}, captions)
    assert {Path(address).name for address in then} == READ, "what decides synonyms and nothing else"
    assert named_files({}) == named_files({}, Augment(synonyms="none")) == {}
    shutil.copytree(folder, moved)
    (folder / "README").write_text("another")
    digests.forget()
    assert changed(then) is None
    for place in (folder, moved):
        (place / name).write_text("another")
        digests.forget()
        assert changed(then) == str(place / name)
        shutil.rmtree(place)
    assert changed(then) is None, "whoever reads it says that it is missing"


def test_synonyms_count_where_captions_are_varied(tmp_path: Path) -> None:
    """A pre-training that reads captions as they are is the same with any synonyms, and goes on with others."""
    path, words = tmp_path / "tiny.yaml", "data.augment={synonyms: wordnet}"
    path.write_text(SPEC.format(world="anywhere"))
    first, second = runs(load(path, [words]).points)
    assert first.captions is None
    assert second.captions == first.augment == Augment(synonyms="wordnet")
    own = runs(load(path, [words, "data.clean.augment={synonyms: none}"]).points)[1]
    assert own.captions == Augment(synonyms="none")


def test_a_word_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("kept", "banana"):
        Path(word).write_text(word)
    assert named_files({"attack": {"target": "banana", "poison": {"picture": "kept"}, "captions": "imagenet"}}) == {}


def test_every_field_that_names_a_file_is_known() -> None:
    found = {name for name, node in _fields(Spec.model_json_schema()) if " file" in str(node.get("description", ""))}
    texts = {name for name in found if name not in OTHERWISE}
    assert texts <= {*FIELDS}, "a new field that names a file belongs into FIELDS, or says here why not"
    assert {"captions", "file", "picture", "flags", "labels"} <= found


def _with(value: Any, file: str) -> Any:
    if isinstance(value, dict):
        return {key: _with(inner, file) for key, inner in value.items()}
    return [_with(inner, file) for inner in value] if isinstance(value, list) else file if value == "FILE" else value


def _fields(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, inner in node.get("properties", {}).items():
            yield name, inner
        for inner in node.values():
            yield from _fields(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _fields(inner)
