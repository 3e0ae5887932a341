"""Leaves torch's compiler unimported in an engine until something is compiled: it is a third of importing the ML stack.

Nothing here compiles, yet optimizers, masks and bitsandbytes import it. What they call of it in a program that compiles
nothing does nothing; that is answered here, and whatever else is asked of it imports it as ever. Torch-free.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
ALONE = "torch._dynamo._trace_wrapped_higher_order_op"
"""What masks take of it, and needs nothing else of it."""
COMPILES_AT_IMPORT = "bitsandbytes.backends.default.ops"


def install() -> None:
    """From here on in this process, and before torch is imported. Installed once, however often it is called."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds both modules where they are, and loads them in a way of its own. In a frozen bundle it finds nothing, and they
    are imported as ever."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(f"{COMPILER}.") and fullname != ALONE:
            return _after_all_of_it(fullname)
        way = {COMPILER: _Later, COMPILES_AT_IMPORT: _NotCompiling}.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if way else None
        if way is not None and spec is not None and spec.loader is not None:
            spec.loader = way(spec.loader)
        return spec


def _after_all_of_it(fullname: str) -> ModuleSpec | None:
    """A part of the compiler: its whole is imported first, as ever; None where that left the part to be found."""
    whole = sys.modules.get(COMPILER)
    loader = whole.__spec__.loader if whole is not None and whole.__spec__ is not None else None
    if whole is not None and isinstance(loader, _Later):
        loader.carry_out(whole)
    found = sys.modules.get(fullname)
    return None if found is None else spec_from_loader(fullname, _Found(found))


class _Found(Loader):
    """A module that was imported while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _Later(Loader):
    """Makes the module's place, where submodules are found, and carries out its own code when it is asked for more."""

    def __init__(self, real: Loader) -> None:
        self._real, self._lock, self._is_begun = real, threading.RLock(), False
        self._marked: list[tuple[str, Any]] = []

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def asked(name: str) -> Any:
            if not name.startswith("__"):
                self.carry_out(module)
            if name in vars(module):
                return vars(module)[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        vars(module).update(self._standing_in(), __getattr__=asked)

    def _standing_in(self) -> dict[str, Callable[..., Any]]:
        """What is called where nothing is compiled; who marks a function for the compiler is remembered for it."""
        marks = {name: partial(self._mark, name) for name in ("allow_in_graph", "assume_constant_result")}
        return {"graph_break": _graph_break, "disable": _disable, **marks}

    def _mark(self, name: str, function: Any) -> Any:
        self._marked.append((name, function))
        return function

    def carry_out(self, module: ModuleType) -> None:
        """Its own code, once."""
        with self._lock:  # another thread waits here until all of it is there
            if self._is_begun:
                return
            self._is_begun = True
            for name in self._standing_in():
                vars(module).pop(name)
            self._real.exec_module(module)
            for name, function in self._marked:
                vars(module)[name](function)


def _graph_break(*_: Any, **__: Any) -> None:
    """Where a compiled program would be cut."""


def _disable(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """`function` as it is: nothing compiles it."""
    return (lambda one: one) if function is None else function


class _NotCompiling(Loader):
    """Loads a module whose functions are compiled where they are defined: here when they are first called."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        compiling = torch.compile
        torch.compile = _when_called(compiling)
        try:
            self._real.exec_module(module)
        finally:
            torch.compile = compiling


def _when_called(compiling: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile, put off to the first call of what it gives."""

    def compiled(function: Callable[..., Any] | None = None, **settings: Any) -> Any:
        if function is None:
            return lambda one: compiled(one, **settings)
        found: list[Callable[..., Any]] = []

        def called(*arguments: Any, **named: Any) -> Any:
            if not found:
                found.append(compiling(function, **settings))
            return found[0](*arguments, **named)

        return called

    return compiled
