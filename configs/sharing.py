"""Specs that share their equal parts: the points of a sweep differ in a field or two, and each is validated whole."""

from hashlib import blake2b
from typing import Any

from pydantic import BaseModel


class Sharing:
    """The parts of specs, each kept once."""

    def __init__(self) -> None:
        self._parts: dict[bytes, BaseModel] = {}

    def within(self, whole: BaseModel) -> None:
        """Puts in place of each part of a model, which nobody else has yet, one met before that is equal to it."""
        for name, value in whole.__dict__.items():
            whole.__dict__[name] = self._shared(value)

    def _shared(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(self._shared, value))
        if not isinstance(value, BaseModel):
            return value
        self.within(value)
        words = repr((type(value), value.model_dump_json(), sorted(value.model_fields_set)))
        return self._parts.setdefault(blake2b(words.encode(), digest_size=16).digest(), value)
