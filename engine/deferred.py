"""Packages that are loaded when they are first used, not when they are first imported.

torch takes five times as long to load as all else that a spec with an error in it needs, and whatever a spec names stands
beside functions of torch.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType, SimpleNamespace
from typing import Any


class Deferred(ModuleType):
    """A package that nothing was asked of so far. It has no __path__, so that no part of it is imported before the whole."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            raise AttributeError(name)
        load(self.__name__)
        return getattr(self, name)


def defer(name: str) -> None:
    """Makes `import NAME` cost nothing, until something of it is used; `import NAME.PART` needs `load` before."""
    if name not in sys.modules and (spec := find_spec(name)) is not None:
        module = sys.modules[name] = module_from_spec(spec)
        module.__class__ = Deferred
        del module.__path__


def load(name: str) -> None:
    """Loads a package that was deferred, if it was."""
    module = sys.modules.get(name)
    if type(module) is Deferred:
        spec: Any = module.__spec__
        module.__class__ = ModuleType  # type: ignore[assignment]
        module.__path__ = spec.submodule_search_locations
        spec.loader.exec_module(module)


class StandIn(ModuleType):
    """A module of torch's compiler as far as one needs it that compiles nothing; asked for more, the real one is loaded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for each in COMPILER:
            sys.modules.pop(each, None)
        return getattr(import_module(self.__name__), name)


COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def without_compiler() -> None:
    """For a dry run: torch's compiler, a second and a thousand modules, is not loaded by those who only ask it to leave a
    function alone (torch for kernels of the meta device, timm), or only name it (torchvision). Not for training: DeepSpeed
    does without parts of itself that it can't import, and fails later."""
    if COMPILER[0] not in sys.modules:
        parts = [sys.modules.setdefault(name, StandIn(name)) for name in COMPILER]
        rules = SimpleNamespace(clear_lru_cache=lambda: None)  # what torch.distributed asks for at its start
        # and torch's optimizers at each step: outside of compiled code it does nothing
        vars(parts[0]).update(disable=_as_it_is, trace_rules=rules, graph_break=lambda msg="": None)
        vars(parts[1])["is_compile_supported"] = lambda device: False


def _as_it_is(function: Any = None, recursive: bool = True, **more: Any) -> Any:
    return _as_it_is if function is None else function
