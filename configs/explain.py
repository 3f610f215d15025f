"""Validation errors in words: where it stands, what was given, what was expected, what to do."""

from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from configs.source import Place, SpecTree

MANY = 100  # names that are too many to list


def explain(error: ValidationError, source: SpecTree, model: type[BaseModel], under: Place = ()) -> list[str]:
    """One line an error, in the order of the file."""
    lines = []
    for fault in error.errors(include_url=False):
        place = written_path(fault["loc"], source.values if not under else None, model)
        path = ".".join(str(part) for part in place)
        text = _words(fault, fault["loc"], model)
        lines.append(f"{source.where((*under, *place))}: {path or 'spec'}: {text}")
    return lines


def written_path(loc: tuple[int | str, ...], values: Any, model: type[BaseModel]) -> Place:
    """The path as the user wrote it: pydantic's location less the tags of unions."""
    place: list[str | int] = []
    kinds: list[Any] = [model]
    for part in loc:
        named = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if part in _tags(kinds) and not any(part in kind.model_fields for kind in named):
            kinds = [kind for kind in named if part in _kind_names(kind)] or kinds
            continue
        place.append(part)
        kinds = _inside(kinds, part)
    return tuple(place)


def _words(fault: Any, loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    value = fault["input"]
    context = fault.get("ctx", {})
    if fault["type"] == "extra_forbidden":
        return f"unknown key{suggestion(str(loc[-1]), field_names(model, loc[:-1]))}"
    if fault["type"] == "missing":
        return "is missing; add it"
    if fault["type"] == "union_tag_invalid":
        names = [name.strip("' ") for name in context["expected_tags"].split(",")]
        return f"unknown kind '{context['tag']}'{suggestion(str(context['tag']), names)}; valid: {', '.join(names)}"
    if fault["type"] == "union_tag_not_found":
        return "lacks its kind; for example {kind: ...}"
    if fault["type"] == "literal_error":
        return f"is {value!r}; expected {context['expected']}"
    if fault["type"] == "value_error":
        return f"{context['error']}"
    return f"is {value!r}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def suggestion(word: str, names: list[str]) -> str:
    """'; did you mean "x"?' or the valid names, or nothing if there are none."""
    near = get_close_matches(word, names, 1, 0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; valid: {', '.join(sorted(names))}" if 0 < len(names) < MANY else ""


def field_names(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand at a location of the model; tags of unions in the location are stepped over."""
    kinds: list[Any] = [model]
    for part in loc:
        chosen = [kind for kind in kinds if isinstance(kind, type) and part in _kind_names(kind)]
        kinds = chosen or _inside(kinds, part)
    return sorted({name for k in kinds if isinstance(k, type) and issubclass(k, BaseModel) for name in k.model_fields})


def paths(model: type[BaseModel], depth: int = 5) -> list[str]:
    """Every dotted path of a field, unions' members together, to a depth."""
    out = []
    for name, field in model.model_fields.items():
        out.append(name)
        for kind in _flat(field.annotation) if depth > 1 else ():
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                out += [f"{name}.{rest}" for rest in paths(kind, depth - 1)]
    return sorted(dict.fromkeys(out))


def _inside(kinds: list[Any], part: int | str) -> list[Any]:
    out: list[Any] = []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if part in kind.model_fields:
                out.extend(_flat(kind.model_fields[str(part)].annotation))
        elif get_origin(kind) in (list, tuple, dict):
            out.extend(_flat(get_args(kind)[-1]))
    return out


def _flat(kind: Any) -> list[Any]:
    """The members of a union, and of those within; other types as they are."""
    if get_origin(kind) is Annotated:
        return _flat(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [inner for member in get_args(kind) for inner in _flat(member)]
    return [kind]


def _kind_names(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and "kind" in kind.model_fields:
        return get_args(kind.model_fields["kind"].annotation)
    return ()


def _tags(kinds: list[Any]) -> set[Any]:
    """What pydantic puts into a location besides field names: tags of unions and names of plain types."""
    return (
        {name for kind in kinds for name in _kind_names(kind)}
        | {"int", "float", "str", "bool"}
        | {
            part
            for kind in kinds
            for part in (str(kind), getattr(kind, "__name__", ""))
            if get_origin(kind) or part.startswith("literal")
        }
    )
