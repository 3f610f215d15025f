"""The text of a spec: YAML 1.2 to plain values, remembering the line of every key.

Values are made here from the parser's events, so that any text ends in a tree of bounded depth and size or in one error: no
tags, no aliases, no number beyond 64 bits.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    StreamEndEvent,
)  # fmt: skip

from data.refusal import UserError

LIMIT = 1 << 17  # bytes; a spec is a page
VALUES, DEPTH = 20_000, 24  # of a spec at most: keys and values; mappings and lists inside each other
SHOWN = 80  # characters of a setting in an error
LARGEST = 2**64  # whole numbers lie below it: what seeds can be
Place = tuple[str | int, ...]  # path of a field: ("clean", "optimizer", "rate")

UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # as YAML 1.2 has it
CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
WHOLE = re.compile(r"[-+]?(0b_*[01][01_]*|0o_*[0-7][0-7_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)")
NUMBER = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?)")
NOT_FINITE = {f"{sign}.{word}": float(f"{sign}inf") for sign in ("", "-", "+") for word in ("inf", "Inf", "INF")}
NOT_FINITE |= {f".{word}": float("nan") for word in ("nan", "NaN", "NAN")}


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


class _Fault(Exception):
    """What is wrong with a text, and in which line, from 1."""

    def __init__(self, words: str, line: int | None = None) -> None:
        super().__init__(words)
        self.line = line


def read_source(path: str | Path) -> SpecTree:
    """The values of a YAML file; UserError if it is no file, too large, no mapping, or uses aliases, tags or a key twice."""
    source = SpecTree(str(path), {})
    try:
        text = _text(path)
        values = _Values(text).whole(source)
    except _Fault as fault:
        line = "" if fault.line is None else f":{fault.line}"
        raise UserError(f"{path}{line}: {fault}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping; expected 'name: ...', 'data: ...' and so on, as in specs/minimal.yaml")
    source.values = values
    return source


def _text(path: str | Path) -> str:
    """What stands in a file, read up to the limit; nothing else than a file is waited for."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise _Fault(f"is {what}; expected a file such as specs/minimal.yaml")
        with open(path, "rb") as file:
            body = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise _Fault(f"{words}; expected a spec such as specs/minimal.yaml") from None
    if len(body) > LIMIT:
        raise _Fault(f"has more than {LIMIT:,} bytes; expected a spec, which is a page or two")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise _Fault("is not UTF-8 text; expected YAML, saved as UTF-8", line) from None


class _Values:
    """The values of a text, as its parser tells them."""

    def __init__(self, text: str) -> None:
        self.text, self.count = text, 0
        self.lines: dict[Place, int] = {}

    def whole(self, source: SpecTree) -> Any:
        """The value of the one document, its keys' lines noted in the source; _Fault if it can't be read."""
        if (strange := UNREADABLE.search(self.text)) is not None:
            raise _Fault(_strange(strange.group()), self.text.count("\n", 0, strange.start()) + 1)
        try:
            value = self._document(iter(YAML(typ="safe", pure=True).parse(self.text)))
        except YAMLError as error:
            raise _yaml_fault(error) from None
        except (ValueError, OverflowError) as error:  # the parser's own, of escapes and of directives that it can't read
            raise _Fault(f"is not valid YAML: {error}") from None
        source.lines |= {place: f"{source.name}:{line}" for place, line in self.lines.items()}
        return value

    def _document(self, events: Iterator[Event]) -> Any:
        value, documents = None, 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Fault("a second document begins (---); a spec is one", _line(event))
                value = self._value(next(events), events, ())
            elif isinstance(event, StreamEndEvent):
                break
        return value

    def _value(self, event: Event, events: Iterator[Event], place: Place) -> Any:
        self.count += 1
        if isinstance(event, AliasEvent):
            raise _Fault("aliases (*name) are not allowed in a spec; write out what they stand for", _line(event))
        assert isinstance(event, NodeEvent)
        if (tag := getattr(event, "tag", None)) is not None:
            words = f"tags ({_cut(_as_written(tag))}) are not allowed in a spec; leave it out, and put text in quotes"
            raise _Fault(words, _line(event))
        if self.count > VALUES:
            raise _Fault(f"holds more than {VALUES:,} keys and values; sweep a range instead of a list", _line(event))
        if isinstance(event, ScalarEvent):
            return _scalar(event)
        if len(place) >= DEPTH:
            raise _Fault(f"holds mappings and lists more than {DEPTH} deep; a spec needs fewer", _line(event))
        return self._mapping(events, place) if isinstance(event, MappingStartEvent) else self._list(events, place)

    def _mapping(self, events: Iterator[Event], place: Place) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for event in events:
            if isinstance(event, CollectionEndEvent):
                break
            if not isinstance(event, ScalarEvent) or event.tag is not None:
                raise _Fault("a key is no plain word; expected 'name: value'", _line(event))
            key, line = str(event.value), _line(event)
            if key in out:
                first = self.lines[(*place, key)]
                raise _Fault(f"'{_cut(key)}' is a duplicate key, first given in line {first}; leave one out", line)
            if key == "<<":
                raise _Fault("'<<' merges nothing in a spec; write its fields out", line)
            _check_text(key, line)
            self.count += 1
            self.lines[(*place, key)] = line
            out[key] = self._value(next(events), events, (*place, key))
        return out

    def _list(self, events: Iterator[Event], place: Place) -> list[Any]:
        out: list[Any] = []
        for event in events:
            if isinstance(event, CollectionEndEvent):
                break
            self.lines[(*place, len(out))] = _line(event)
            out.append(self._value(event, events, (*place, len(out))))
        return out


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _scalar(event: ScalarEvent) -> Any:
    """A plain word by YAML 1.2's rules: null, true or false, a number, or text; _Fault if no field can hold it."""
    text, line = str(event.value), _line(event)
    if event.style is None or event.style == "":
        if (word := text if text in CONSTANTS else text.lower()) in CONSTANTS and text in (word, word.title(), word.upper()):
            return CONSTANTS[word]
        if WHOLE.fullmatch(text):
            return _whole(text.replace("_", ""), line)
        if text in NOT_FINITE:
            return NOT_FINITE[text]
        if NUMBER.fullmatch(text):
            return float(text.replace("_", ""))
    _check_text(text, line)
    return text


def _whole(digits: str, line: int) -> int:
    base = {"0b": 2, "0o": 8, "0x": 16}.get(digits.lstrip("+-")[:2], 10)
    value = int(digits, base) if len(digits) < 100 else LARGEST
    if abs(value) >= LARGEST:
        raise _Fault(f"{_cut(digits)} is too large; expected whole numbers below 2^64", line)
    return value


def _check_text(text: str, line: int) -> None:
    """_Fault for what an escape such as "\\0" can write and no file name, word or key can hold."""
    if (strange := UNREADABLE.search(text)) is not None:
        raise _Fault(_strange(strange.group()), line)


def _strange(character: str) -> str:
    return f"holds the character U+{ord(character):04X}, which is no text; take it out"


def _as_written(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!", 1)


def _cut(words: str) -> str:
    """The words, or so many of them as an error shows."""
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."


def _yaml_fault(error: YAMLError) -> _Fault:
    """A parser's error without its drawing of the text and its advice."""
    if not isinstance(error, MarkedYAMLError):
        return _Fault(f"is not valid YAML: {' '.join(str(error).split())}")
    mark = error.problem_mark or error.context_mark
    words = ", ".join(" ".join(str(part).split()) for part in (error.context, error.problem) if part)
    return _Fault(f"is not valid YAML: {words}", None if mark is None else int(mark.line) + 1)


def override(source: SpecTree, setting: str, place_of: Callable[[Place], Place] = lambda place: place) -> None:
    """Sets one field from 'path=value'; the value is read as YAML, and lies where `place_of` says of the path's names.
    UserError if it is not of that form."""
    path, equals, text = setting.partition("=")
    place: Place = tuple(path.strip().split("."))
    shown = _cut(setting)
    if not equals or not all(place) or len(place) > DEPTH:
        raise UserError(f"--set {shown!r} is not of the form path=value, for example clean.optimizer.rate=1e-5")
    if len(text) > LIMIT:
        raise UserError(f"--set {shown!r}: the value has more than {LIMIT:,} characters; write it into the spec")
    try:
        _check_text(path, 1)
        value = _Values(text).whole(SpecTree("--set", {}))
    except _Fault as fault:
        raise UserError(f"--set {shown!r}: the value {fault}") from None
    place = place_of(place)
    put(source.values, place, value)
    source.lines[place] = f"--set {shown}"


def put(values: dict[Any, Any], place: Place, value: Any) -> None:
    """Sets the value at a path in nested mappings, copying or making those on the way."""
    for key in place[:-1]:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, dict) else {}
        values = values[key]
    values[place[-1]] = value
