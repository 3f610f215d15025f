"""What a field of a spec takes, in words and by an example: read from the types and limits of the models that check it."""

import json
import re
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PATTERNS = {  # what a pattern of a field means
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "of letters, digits, '.', '_' and '-', a letter or digit first",
    r"^(txt|json\..+)$": "that is txt or json.FIELD",
    r"^[ -~]+$": "of plain ASCII characters",
    r"\S": "that is not blank",
}
EXAMPLES: dict[str, Any] = {  # of fields that have no default, by name, or by model and name
    "Spec.name": "demo", "Model.name": "RN50", "Data.pretrain": {"shards": "shards/demo/train/*.tar"},
    "shards": "shards/demo/train/*.tar", "test": {"demo": "shards/demo/eval"}, "target": "banana", "poison": {"count": 300},
    "file": "trigger.png", "text": "zx", "epochs": 6, "batch": 64, "rate": 0.001, "images": "demo", "train": "demo-train",
    "classes": 10, "flags": "flags.jsonl", "stamp": "stamp.safetensors", "trials": 20, "low": 1.0e-5, "high": 1.0e-3,
    "Line.to": {"path": "runs/demo/pretrain-0123456789ab"},
}  # fmt: skip
BARE = re.compile(r"[A-Za-z_][\w./*-]*")


class Kind(NamedTuple):
    """A type that a field takes, and the limits of its values."""

    type: Any
    limits: tuple[Any, ...] = ()


def field_kind(model: Any, name: str) -> Kind:
    """Of a field of a model."""
    field: FieldInfo = model.model_fields[name]
    return Kind(field.annotation, tuple(field.metadata))


def members(kind: Kind) -> list[Kind]:
    """The members of a union, and of those within, but null; of another type itself."""
    if get_origin(kind.type) is Annotated:
        inner, *notes = get_args(kind.type)
        limits = [limit for note in notes for limit in (note.metadata if isinstance(note, FieldInfo) else [note])]
        return members(Kind(inner, (*kind.limits, *limits)))
    if get_origin(kind.type) in (Union, UnionType):
        every = [one for inner in get_args(kind.type) for one in members(Kind(inner, kind.limits))]
        return [one for one in every if one.type is not type(None)]
    return [kind]


def is_model(kind: Kind) -> bool:
    """Whether values are mappings of the fields of a model."""
    return isinstance(kind.type, type) and issubclass(kind.type, BaseModel)


def kind_names(kind: Kind) -> tuple[Any, ...]:
    """The kinds that a model of a union stands for."""
    return get_args(kind.type.model_fields["kind"].annotation) if is_model(kind) and "kind" in kind.type.model_fields else ()


def expected(kind: Kind) -> str:
    """What is taken, such as 'a whole number of at least 0'."""
    every = members(kind)
    if all(kind_names(one) for one in every):
        return f"a mapping with a kind, such as {written(example(kind))}"
    words = [[*map(shown, get_args(one.type))] if get_origin(one.type) is Literal else [expected_one(one)] for one in every]
    return either(word for each in words for word in each)


def expected_one(kind: Kind) -> str:
    """As `expected`, of what is no union."""
    origin, inner = get_origin(kind.type), get_args(kind.type)
    if origin is dict:
        return f"a mapping such as {written(example(kind))}" if example(Kind(inner[1])) else "a mapping of names"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}, each {expected(Kind(inner[0]))}"
    if origin in (tuple, list):
        few = _limit(kind, "min_length")
        what = "" if inner[0] is Any else f", each {expected(Kind(inner[0]))}"
        return f"a list{f' of at least {few}' if few else ' of values' if inner[0] is Any else ''}{what}"
    if is_model(kind):
        if needed := example(kind):
            return f"a mapping such as {written(needed)}"
        fields = list(kind.type.model_fields)[:4]
        return "a mapping of 'path: value'" if fields == ["sweep"] else f"a mapping of fields such as {either(fields)}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "a value"}
    return names[kind.type] + _limits(kind)


def _limit(kind: Kind, name: str) -> Any:
    return next((found for limit in kind.limits if (found := getattr(limit, name, None)) is not None), None)


def _limits(kind: Kind) -> str:
    low, above = _limit(kind, "ge"), _limit(kind, "gt")
    words = {"ge": "of at least", "gt": "above", "le": "at most" if above is not None else "of at most", "lt": "below"}
    found = [f"{word} {number:,}" for name, word in words.items() if (number := _limit(kind, name)) is not None]
    if low is not None and (most := _limit(kind, "le")) is not None:
        found = [f"from {low:,} to {most:,}"]
    if pattern := _limit(kind, "pattern"):
        found.append(PATTERNS[pattern])
    elif _limit(kind, "min_length"):
        found.append("that is not empty")
    if longest := _limit(kind, "max_length"):
        found.append(f"at most {longest} characters long")
    return " " + " and ".join(found) if found else ""


def example(kind: Kind) -> Any:
    """A value that is taken: of a model the fields that it must have."""
    one = members(kind)[0]
    origin, inner = get_origin(one.type), get_args(one.type)
    if is_model(one):
        fields = [name for name, field in one.type.model_fields.items() if field.is_required() or name == "kind"]
        fields.sort(key=lambda name: name != "kind")
        return {name: field_example(one.type, name) for name in fields}
    if origin is Literal:
        return inner[0]
    if origin is dict:
        return {"name" if inner[0] is str else example(Kind(inner[0])): example(Kind(inner[1]))}
    if origin in (tuple, list):
        count = len(inner) if Ellipsis not in inner else max(1, _limit(one, "min_length") or 0)
        return [example(Kind(inner[0]))] * count
    return {bool: True, int: 1, float: 0.1}.get(one.type, "word")


def field_example(model: Any, name: str) -> Any:
    """A value that a field takes."""
    known = [EXAMPLES[key] for key in (f"{model.__name__}.{name}", name) if key in EXAMPLES]
    return known[0] if known else example(field_kind(model, name))


def either(words: Iterable[str]) -> str:
    """'a, b or c'."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: Any) -> str:
    """What was given: as `written`, text in quotes."""
    if not isinstance(value, str):
        return written(value)
    text = "".join(character if character.isprintable() else " " for character in value[:81])
    return f"'{text}'" if len(text) <= 80 else f"'{text[:80]}...'"


def written(value: Any, longest: int = 80) -> str:
    """A value as a spec has it on one line; a long one cut."""
    text = _written(value, 0)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _written(value: Any, depth: int) -> str:
    if isinstance(value, dict) and depth < 5:
        return "{" + ", ".join(f"{_written(key, 9)}: {_written(one, depth + 1)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple) and depth < 5:
        return "[" + ", ".join(_written(one, depth + 1) for one in value[:20]) + "]"
    if isinstance(value, dict | list | tuple):
        return "..."
    if isinstance(value, str) and BARE.fullmatch(value):
        return value
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
