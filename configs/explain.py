"""Validation errors in words: where it stands, what was given, what was expected, what to do."""

from difflib import get_close_matches
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from configs.expect import Kind, expected, field_example, field_kind, is_model, kind_names, members, shown, written
from configs.source import Place, SpecTree

MANY = 100  # names that are too many to list
MOST = 50  # errors that are told at once


class Spot(NamedTuple):
    """What pydantic's location of an error points at."""

    place: Place  # the path as the user wrote it
    kind: Kind  # what is taken there
    parent: Kind  # what holds it
    union: tuple[Place, Kind, Kind] | None = None  # where members without a kind were tried: path, union, the one tried


def explain(error: ValidationError, source: SpecTree, model: type[BaseModel]) -> list[str]:
    """One line an error, in the order of the file."""
    lines: dict[str, None] = {}
    faults = error.errors(include_url=False)
    inner = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    for fault in faults:
        if fault["type"] == "too_short" and fault["loc"] in inner:
            continue  # a list is not too short because items of it are wrong
        if (told := _told(fault, source.values, model)) is None:
            continue
        place, text = told
        path = ".".join(str(part) for part in place)
        lines[f"{source.where(place)}: {written(path, 120)[:130] if len(path) > 120 else path or 'spec'}: {text}"] = None
        if len(lines) > MOST:
            return [*list(lines)[:MOST], "and further ones"]
    return list(lines)


def _told(fault: Any, values: Any, model: type[BaseModel]) -> tuple[Place, str] | None:
    """(the path, what is wrong there); None for what a member of a union says that was not meant."""
    loc = fault["loc"]
    if fault["type"] == "missing" and isinstance(loc[-1], int):  # a list that is too short
        loc, fault = loc[:-1], {**fault, "type": "too_short", "input": fault["input"]}
    spot = follow(loc, model)
    if spot.union is not None:
        place, union, tried = spot.union
        given = _value(values, place, fault["input"])
        wanted = meant(members(union), given)
        if wanted not in (None, tried):
            return None
        if wanted is None or spot.place == place and fault["type"] != "value_error":
            return place, f"is {shown(given)}; expected {expected(union)}"
    return spot.place, _words(fault, spot)


def _words(fault: Any, spot: Spot) -> str:
    what, context = fault["type"], fault.get("ctx", {})
    name = str(spot.place[-1]) if spot.place else ""
    if what == "extra_forbidden":
        return f"unknown key{suggestion(name, _fields(spot.parent))}"
    if fault["loc"] and fault["loc"][-1] == "[key]":
        return f"unknown key; valid: {', '.join(map(str, get_args(get_args(spot.parent.type)[0])))}"
    if what == "missing":
        return f"is missing; add it, for example '{name}: {written(field_example(spot.parent.type, name))}'"
    if what == "union_tag_invalid":
        names = [str(each) for member in members(spot.kind) for each in kind_names(member)]
        given = fault["input"].get("kind") if isinstance(fault["input"], dict) else context["tag"]
        return f"unknown kind {shown(given)}{suggestion(str(given), names, every=True)}"
    if what == "union_tag_not_found":
        return f"lacks its kind; for example {expected(spot.kind).partition('such as ')[2]}"
    if what == "value_error":
        return str(context["error"])
    return f"is {shown(fault['input'])}; expected {expected(spot.kind)}"


def suggestion(word: str, names: list[str], every: bool = False) -> str:
    """'; did you mean "x"?', or the valid names, or both if `every`; nothing if there are none."""
    near = get_close_matches(word[:100], names, 1, 0.6)
    valid = f"valid: {', '.join(names if every else sorted(names))}" if 0 < len(names) < MANY else ""
    meant = f"did you mean '{near[0]}'?" if near else ""
    told = [part for part in (meant, valid if every or not near else "") if part]
    return f"; {' '.join(told)}" if told else ""


def follow(loc: tuple[int | str, ...], model: type[BaseModel]) -> Spot:
    """What a location points at: its path less the names of union members that pydantic puts in between."""
    place: list[int | str] = []
    kind = parent = Kind(model)
    union = None
    parts = list(loc)
    while parts:
        options = members(kind)
        if len(options) > 1:
            tag = parts.pop(0)
            tried = next((one for one in options if tag in kind_names(one) or _is_tag(one, str(tag))), options[0])
            if not kind_names(tried):
                union = tuple(place), kind, tried
            kind = tried
            continue
        if (part := parts.pop(0)) == "[key]":
            break
        parent = options[0]
        place.append(part)
        kind = _inside(parent, part)
    return Spot(tuple(place), kind, parent, union)


def _is_tag(kind: Kind, tag: str) -> bool:
    """Whether pydantic calls a member of a union so."""
    origin = get_origin(kind.type)
    if origin is not None:
        return tag.startswith(f"{getattr(origin, '__name__', str(origin).rpartition('.')[2]).lower()}[")
    return tag == kind.type.__name__ or tag.endswith(f" {kind.type.__name__}]")


def meant(options: list[Kind], given: Any) -> Kind | None:
    """The member of a union that a list or a mapping is meant for; None for plain values."""
    if isinstance(given, list):
        return next((one for one in options if get_origin(one.type) in (list, tuple)), None)
    if not isinstance(given, dict):
        return None
    models = [one for one in options if is_model(one)]
    of_fields = [one for one in models if set(given) & set(one.type.model_fields)]
    return next(iter([*of_fields, *(one for one in options if get_origin(one.type) is dict), *models]), None)


def _inside(kind: Kind, part: int | str) -> Kind:
    """What is taken at a part of a path."""
    if is_model(kind):
        if part in kind.type.model_fields:
            return field_kind(kind.type, str(part))
        extra = kind.type.__annotations__.get("__pydantic_extra__")
        return Kind(get_args(extra)[-1] if extra is not None else Any)
    if get_origin(kind.type) in (list, tuple, dict):
        inner = [one for one in get_args(kind.type) if one is not Ellipsis]
        return Kind(inner[-1])
    return Kind(Any)


def _value(values: Any, place: Place, otherwise: Any) -> Any:
    """What stands at a path."""
    for part in place:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return values


def _fields(kind: Kind) -> list[str]:
    return sorted({name for one in members(kind) if is_model(one) for name in one.type.model_fields})


def field_names(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that may stand at a path of the model, those of a union's members together."""
    kinds = [Kind(model)]
    for part in place:
        kinds = [_inside(one, part) for kind in kinds for one in members(kind)]
    return sorted({name for kind in kinds for name in _fields(kind)})


def paths(model: type[BaseModel], depth: int = 5) -> list[str]:
    """Every dotted path of a field, unions' members together, to a depth."""
    out = []
    for name in model.model_fields:
        out.append(name)
        for kind in members(field_kind(model, name)) if depth > 1 else ():
            if is_model(kind):
                out += [f"{name}.{rest}" for rest in paths(kind.type, depth - 1)]
    return sorted(dict.fromkeys(out))
