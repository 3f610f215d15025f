"""README and docs say what is there: the spec loads, kinds are complete, files exist, links and commands lead somewhere."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from configs.plan import runs
from configs.spec import load, schema

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_is_a_screen_and_its_spec_is_the_study_it_says(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 80
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(block.splitlines()) <= 15
    (tmp_path / "cc3m.yaml").write_text(block)
    loaded = load(tmp_path / "cc3m.yaml")
    assert [run.stage for run in runs(loaded.points)] == ["pretrain"] * 2 + ["twin"] + ["clean"] * 6


def test_every_kind_is_listed() -> None:
    text = (ROOT / "docs/kinds.md").read_text() + (ROOT / "docs/cleaning.md").read_text()
    fields = [node["kind"] for node in objects(json.loads(schema())) if isinstance(node.get("kind"), dict)]
    kinds = {kind for field in fields for kind in field.get("enum", [field["const"]] if "const" in field else [])}
    assert len(kinds) > 30
    assert not [kind for kind in kinds if not re.search(rf"\b{kind}\b", text)]


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON value."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(child)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_modules_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    places = re.findall(
        r"`((?:engine|data|configs|objectives|measures|records|report|tests|specs|benchmarks)/[\w./]+)`", text
    )
    assert not [place for place in places if not (ROOT / place).exists()]
    modules = set(re.findall(r"python -m ((?:engine|data|report)[\w.]*)", text))
    assert not [module for module in modules if not runs_as_a_module(module)]


def runs_as_a_module(name: str) -> bool:
    """Whether `python -m NAME` finds something of ours to run."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{name}.__main__")
    return spec is not None and spec.origin is not None and "__main__" in Path(spec.origin).read_text() + spec.origin
