"""Every example of docs/cleaning.md, on the tiny world."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from conftest import ROOT, SPEC, antidote, environment
from ruamel.yaml import YAML
from safetensors.numpy import save_file

from configs.plan import runs
from configs.spec import Spec, load
from data.shards import read_index

SMALL: dict[str, Any] = {  # what an example says is made small, where it says it
    "clean": {"epochs": 1, "batch": 16, "measure_steps": 2},
    "clean.objective": {"classes": 32},
    "clean.transform": {"pairs": 64, "steps": 3},
    "data.clean": {"pairs": 64},
    "sweep.search": {"trials": 2, "together": 2},
    "sweep.stop": {"after": 1, "runs": 1},
    "sweep.clean.optimizer.rate": {"points": 2},
    "sweep.clean.epochs": {"high": 2},
}


def examples() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/cleaning.md").read_text(), re.DOTALL)


def merged(base: Any, change: Any) -> Any:
    """The change over the base; a section with another kind, and what is no mapping, replaces what was there."""
    if not isinstance(base, dict) or not isinstance(change, dict) or "kind" in change or "path" in change:
        return change
    return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}


def small(tree: dict[str, Any]) -> dict[str, Any]:
    for place, values in SMALL.items():
        node: Any = tree
        for part in place.split(".") if not place.startswith("sweep.clean") else ("sweep", place.removeprefix("sweep.")):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.update({key: value for key, value in values.items() if key in node})
    return tree


def test_every_example_of_the_page_on_cleaning_is_a_spec() -> None:
    yaml = YAML(typ="safe", pure=True)
    base = yaml.load(SPEC.format(world="shards/tiny"))
    seen = set()
    for text in examples():
        spec = Spec.model_validate(small(merged(base, yaml.load(text))))
        seen.add(spec.model_dump_json())
    assert len(seen) > 20, "each says something else"


def test_every_example_of_the_page_on_attacks_is_a_spec() -> None:
    yaml = YAML(typ="safe", pure=True)
    base = yaml.load(SPEC.format(world="shards/tiny"))
    base |= {
        "measure": [{"kind": "zero_shot", "images": "lab"}],
        "data": {**base["data"], "test": {"lab": "x", "striped": "y"}},
    }
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/attacks.md").read_text(), re.DOTALL)
    specs = [Spec.model_validate({**base, **yaml.load(text)}) for text in blocks]
    assert [len(spec.attack.aims) for spec in specs] == [1, 1, 1, 3, 1]


@pytest.mark.slow
def test_every_example_of_the_page_on_cleaning_runs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = SPEC.format(world=world).replace("epochs: 2", "epochs: 1")
    (tmp_path / "first.yaml").write_text(base)
    first = antidote("--spec", "first.yaml", "--stage", "pretrain", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    begun = next((tmp_path / "runs/tiny").glob("pretrain-*"))
    keys = [entry["key"] for entry in json.loads((begun / "poison.json").read_text())["entries"]]
    (tmp_path / "flagged.jsonl").write_text("".join(json.dumps({"key": key}) + "\n" for key in keys))
    known = read_index(f"{world}/train/*.tar", tmp_path / "cache", beside=False).keys
    mask, trigger = np.zeros((32, 32), np.float32), np.ones((3, 32, 32), np.float32)
    save_file({"trigger": trigger, "mask": mask}, tmp_path / "stamp.safetensors")
    labels = [json.dumps({"key": key, "label": i % 32}) + "\n" for i, key in enumerate(known)]
    (tmp_path / "labels.jsonl").write_text("".join(labels))
    from test_cleaning import Study, published

    published(Study(tmp_path / "runs/tiny"), tmp_path / "epoch.best.pt")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/clean").symlink_to(world / "train")
    for name in ("tiny", "more"):
        (tmp_path / "shards" / name).symlink_to(world)
    yaml = YAML(typ="safe", pure=True)
    specs = []
    for number, text in enumerate(examples()):
        text = text.replace("runs/cc6m/pretrain-0123456789ab", str(begun)).replace("RN50-quickgelu", "test-resnet")
        tree = small(merged(yaml.load(base), yaml.load(text)))
        if tree["model"]["name"] == "test-resnet":
            tree["model"]["norm_group"] = 4
        path = tmp_path / f"example-{number}.yaml"
        with path.open("w") as file:
            yaml.dump(tree, file)
        specs.append(path)
    assert len(specs) > 20
    out = forked.run(
        [sys.executable, str(ROOT / "tests/examples.py"), *map(str, specs)], cwd=tmp_path, env=environment(),
    )  # fmt: skip
    codes = dict(line.rsplit(" ", 1) for line in out.stdout.splitlines() if line.startswith(str(tmp_path)))
    assert codes == {str(path): "0" for path in specs}, out.stderr[-3000:]
    monkeypatch.chdir(tmp_path)  # what a spec names lies here
    for path in specs:
        for run in runs(load(path).points):
            home = tmp_path / "runs/tiny" / run.folder
            ended = (home / "finished.json").is_file() or (home / "stopped.json").is_file()
            assert ended, (path.read_text(), [one.read_text() for one in home.glob("failed.json")], out.stderr[-2000:])


@pytest.mark.parametrize("path", sorted((ROOT / "specs/mini").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_miniature_says_what_it_asks_and_which_pre_trainings_it_shares(path: Path) -> None:
    """Its header has question, the paper's numbers, cost and data; it has as many pre-trainings as it says, and so many of
    another's."""
    head = path.read_text().split("name:")[0]
    for word in ("Question", "Paper", "Cost", "Data"):
        assert f"# {word}" in head
    loaded = load(str(path))
    assert loaded.spec.name == f"mini-{path.stem}"
    assert loaded.spec.question in " ".join(head.replace("#", " ").split())
    mine = {run.fingerprint for run in runs(loaded.points) if run.stage == "pretrain"}
    words = " ".join(head.replace("#", " ").split())
    claims = re.findall(r"(\d+) of the (\d+) pre-trainings[^.]* those of specs/mini/([\w-]+)\.yaml, taken over", words)
    assert len(claims) == ("taken over" in words)
    for shared, every, other in claims:
        theirs = {run.fingerprint for run in runs(load(str(path.with_stem(other))).points) if run.stage == "pretrain"}
        assert (len(mine & theirs), len(mine)) == (int(shared), int(every))


def test_the_example_of_the_page_on_reports_is_a_spec_and_names_every_measure(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/report.md").read_text(), re.DOTALL)
    yaml = YAML(typ="safe", pure=True)
    tree = merged(yaml.load(SPEC.format(world=tmp_path)), yaml.load(text))
    with (tmp_path / "spec.yaml").open("w") as file:
        yaml.dump(tree, file)
    spec = load(tmp_path / "spec.yaml").spec
    listed = {path.stem for path in (ROOT / "measures").glob("*.py") if "kind: Literal[" in path.read_text()}
    assert {measure.kind for measure in spec.measure} == listed - {"concept_success"}  # for attacks of docs/attacks.md alone
