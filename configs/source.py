"""The text of a spec: YAML 1.2 to plain values, remembering the line of every key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from data.refusal import UserError

LIMIT = 1 << 20  # bytes; a spec is a page
Place = tuple[str | int, ...]  # path of a field: ("clean", "optimizer", "rate")


@dataclass
class SpecTree:
    """Plain values, and for each path the words that say where it stands."""

    name: str
    values: dict[str, Any]
    lines: dict[Place, str] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """The nearest known place of a path, 'specs/x.yaml:12'."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.lines:
                return self.lines[place[:end]]
        return self.name


def read_source(path: str | Path) -> SpecTree:
    """The values of a YAML file; UserError if it is missing, too large, no mapping, or uses aliases or a key twice."""
    try:
        body = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a spec such as specs/demo.yaml") from None
    if len(body) > LIMIT:
        raise UserError(f"{path} has {len(body):,} bytes; a spec has at most {LIMIT:,}")
    try:
        text = body.decode("utf-8-sig")
        for event in YAML(pure=True).parse(text):
            if isinstance(event, AliasEvent):
                raise UserError(f"{path}:{event.start_mark.line + 1}: aliases (*name) are not allowed in a spec; write out")
        tree = YAML(typ="rt", pure=True).load(text)
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path} holds no mapping; expected 'name: ...', 'data: ...' and so on, as in specs/demo.yaml")
    source = SpecTree(str(path), {})
    source.values = _plain(tree, (), source)
    return source


def _plain(node: Any, place: Place, source: SpecTree) -> Any:
    if isinstance(node, CommentedMap):
        for key in node:
            source.lines[(*place, key)] = f"{source.name}:{node.lc.key(key)[0] + 1}"
        return {key: _plain(value, (*place, key), source) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for i in range(len(node)):
            source.lines[(*place, i)] = f"{source.name}:{node.lc.item(i)[0] + 1}"
        return [_plain(value, (*place, i), source) for i, value in enumerate(node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def override(source: SpecTree, setting: str) -> None:
    """Sets one field from 'path=value'; the value is read as YAML. UserError if it is not of that form."""
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {setting!r} is not of the form path=value, for example clean.optimizer.rate=1e-5")
    try:
        value = _plain(YAML(typ="rt", pure=True).load(text), (), SpecTree("--set", {}))
    except YAMLError:
        raise UserError(f"--set {setting!r}: the value is not valid YAML") from None
    place = tuple(path.strip().split("."))
    put(source.values, place, value)
    source.lines[place] = f"--set {setting}"


def put(values: dict[Any, Any], place: Place, value: Any) -> None:
    """Sets the value at a path in nested mappings, copying or making those on the way."""
    for key in place[:-1]:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, dict) else {}
        values = values[key]
    values[place[-1]] = value
