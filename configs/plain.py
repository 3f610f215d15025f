"""Values that pydantic would take for another kind: true for 1, "3" for 3, 1 for true. In a spec they are mistakes.

What is one and the same in YAML stays so: 3.0 and 3e0 are whole numbers, 3 is a number, and yes, no, on and off, words to
YAML 1.2, are what YAML 1.1 took them for.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from configs.expect import Kind, field_kind, is_model, kind_names, members
from configs.explain import meant

M = TypeVar("M", bound=BaseModel)
PLAIN = frozenset((bool, int, float))
SWITCHES = {"true", "false", "yes", "no", "on", "off"}
OTHERS = ""  # stands for the fields of a model that are under names of the user's own
Loc = tuple[str | int, ...]


class Options(NamedTuple):
    """What may stand at a place: the members of its union, their types, and the values that are listed."""

    members: list[Kind]
    types: frozenset[Any]
    listed: frozenset[tuple[type, Any]]


def validated(model: type[M], values: Any, handler: Callable[[Any], M]) -> M:
    """What pydantic's handler makes of a model's values; ValidationError for all that it refuses, and for what is of another
    kind."""
    refused = None
    try:
        made = handler(values)
    except ValidationError as error:
        refused = error
    others = list(_in_model(model, values, ())) if isinstance(values, dict) else []
    if not others and refused is None:
        return made
    if not others and refused is not None:
        raise refused
    other = PydanticCustomError("other_kind", "another kind of value")
    faults = [InitErrorDetails(type=other, loc=loc, input=value) for loc, value in others]
    for fault in refused.errors(include_url=False) if refused is not None else ():
        follows = fault["type"] == "value_error" and any(loc[: len(fault["loc"])] == fault["loc"] for loc, _ in others)
        if not follows:  # what a section says of the values that were made of these
            details = InitErrorDetails(type=fault["type"], loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {}))
            faults.append(details)
    raise ValidationError.from_exception_data(model.__name__, faults)


def _in_model(model: type[BaseModel], values: dict[Any, Any], loc: Loc) -> Iterator[tuple[Loc, Any]]:
    fields = _fields(model)
    for name, value in values.items():
        if (options := fields.get(name, fields.get(OTHERS))) is not None:
            yield from _other_kinds(options, value, (*loc, name))


def _other_kinds(options: Options, value: Any, loc: Loc) -> Iterator[tuple[Loc, Any]]:
    """(where as pydantic says it, value) of each plain value that is of another kind than what is taken there."""
    if not isinstance(value, dict | list):
        if not _fits(options, value):
            plain = next((one.type.__name__ for one in options.members if one.type in PLAIN), "")
            yield (*loc, plain) if len(options.members) > 1 else loc, value
        return
    if (one := _meant(options, value)) is None:
        return
    if len(options.members) > 1:
        origin = get_origin(one.type)
        kind = value.get("kind") if isinstance(value, dict) and kind_names(one) else None
        loc = (*loc, kind or (f"{origin.__name__}[]" if origin else one.type.__name__))
    if is_model(one) and isinstance(value, dict):
        yield from _in_model(one.type, value, loc)
    elif get_origin(one.type) in ((dict,) if isinstance(value, dict) else (list, tuple)):
        inner = _options(Kind([arg for arg in get_args(one.type) if arg is not Ellipsis][-1]))
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _other_kinds(inner, item, (*loc, name))


def _meant(options: Options, value: Any) -> Kind | None:
    """The member that a mapping or a list is meant for."""
    tagged = [one for one in options.members if kind_names(one)]
    if len(tagged) < 2 or not isinstance(value, dict):
        return options.members[0] if len(options.members) == 1 else meant(options.members, value)
    return next((one for one in tagged if value.get("kind") in kind_names(one)), None)


def _fits(options: Options, value: Any) -> bool:
    """Whether a plain value is of a kind that is taken, or of one that pydantic refuses by itself."""
    types = options.types
    if value is None or Any in types or (type(value), value) in options.listed:
        return True
    if isinstance(value, bool):
        return bool in types or not types & PLAIN and value not in {one for _, one in options.listed}
    if not types & PLAIN:
        return True
    if isinstance(value, str):
        return str in types or bool in types and value.lower() in SWITCHES
    return bool(types & {int, float})


@cache
def _fields(model: type[BaseModel]) -> dict[str, Options]:
    extra = model.__annotations__.get("__pydantic_extra__")
    others = {} if extra is None else {OTHERS: _options(Kind(get_args(extra)[-1]))}
    return {name: _options(field_kind(model, name)) for name in model.model_fields} | others


def _options(kind: Kind) -> Options:
    every = members(kind)
    listed = [value for one in every for value in get_args(one.type) if get_origin(one.type) is Literal]
    return Options(every, frozenset(one.type for one in every), frozenset((type(value), value) for value in listed))
