"""The names that a brace pattern stands for: as bash expands them, counted before they are made.

`a/{00..99}.tar`, `{x,y}/{0..9..3}.tar`, nested ones too; a backslash takes a brace or a comma literally.
"""

import re
from typing import NamedTuple

from braceexpand import braceexpand

from data.refusal import UserError

MOST = 1_000_000  # names of one pattern; LAION-5B has 231,349 shards
BYTES = 1 << 28  # of all of them together
DEPTH = 16  # braces within braces
NUMBERS = re.compile(r"(-?\d{1,12})\.\.(-?\d{1,12})(?:\.\.(-?\d{1,12}))?$")
LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d{1,12}))?$")
LONG = re.compile(r"-?\d+\.\.-?\d+(?:\.\.-?\d+)?$")  # numbers of any length


def names(pattern: str) -> list[str]:
    """The names that a pattern stands for, in its order; UserError, in milliseconds, if there are more than a million, or if
    a brace is left open."""
    _count(pattern)
    return list(braceexpand(pattern))


class _Size(NamedTuple):
    """So many names of so many bytes in all."""

    number: int
    bytes: int

    def __add__(self, other: tuple[int, ...]) -> "_Size":  # type: ignore[override]
        """Of alternatives."""
        return _Size(self.number + other[0], self.bytes + other[1])

    def __mul__(self, other: "_Size") -> "_Size":  # type: ignore[override]
        """Of names that follow one another."""
        return _Size(self.number * other.number, self.bytes * other.number + other.bytes * self.number)


NONE, EMPTY = _Size(0, 0), _Size(1, 0)


def _count(pattern: str) -> _Size:
    """How many names a pattern stands for; UserError if they are too many, or a brace is left open."""
    if "\0" in pattern:
        raise UserError(f"shards {pattern!r} hold a zero character; give a path")
    before: list[_Size] = []  # of each open brace: the alternatives that are complete
    line, starts = [EMPTY], [0]  # of each depth: the names so far, where they begin in the pattern
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        if sign == "{" and len(before) == DEPTH:
            raise UserError(
                f"shards '{_short(pattern)}' have more than {DEPTH} braces within each other; write them plainly"
            )
        if sign == "{":
            before.append(NONE)
            line.append(EMPTY)
            starts.append(at + 1)
        elif sign == "}" and before:
            inside = _inside(pattern, pattern[starts.pop() : at], before.pop(), line.pop())
            line[-1] = _bounded(pattern, line[-1] * inside)
        elif sign == "}":
            break
        elif sign == "," and before:
            before[-1], line[-1] = _bounded(pattern, before[-1] + line[-1]), EMPTY
        else:
            at += sign == "\\"
            line[-1] = _bounded(pattern, line[-1] * _Size(1, 1))
        at += 1
    if at < len(pattern) or before:
        where = f"closes a brace at character {at + 1} that is not open" if at < len(pattern) else "leaves a brace open"
        raise UserError(f"shards '{_short(pattern)}' {where}; expected a pattern such as shards/{{00000..00099}}.tar")
    return line[0]


def _inside(pattern: str, text: str, before: _Size, last: _Size) -> _Size:
    """What a pair of braces around a text stands for."""
    if match := NUMBERS.match(text) or LETTERS.match(text):
        low, high = (int(one) if one.lstrip("-").isdigit() else ord(one) for one in match.group(1, 2))
        number = abs(high - low) // (abs(int(match[3] or 1)) or 1) + 1
        return _bounded(pattern, _Size(number, number * max(map(len, match.group(1, 2)))))
    if LONG.match(text):
        raise _too_many(pattern)
    return before + last if before.number else last * _Size(1, 2)  # without a comma the braces stand for themselves


def _bounded(pattern: str, size: _Size) -> _Size:
    """The size; UserError if it is too large, as the whole is then too."""
    if size.number > MOST or size.bytes > BYTES:
        raise _too_many(pattern)
    return size


def _too_many(pattern: str) -> UserError:
    return UserError(
        f"shards '{_short(pattern)}' stand for more than {MOST:,} files, or {BYTES >> 20} MB of names; "
        "give a pattern of fewer, or one with *"
    )


def _short(pattern: str) -> str:
    return pattern if len(pattern) < 200 else f"{pattern[:200]}…"
