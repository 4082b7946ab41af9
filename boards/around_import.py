"""Execute a module, when it is first imported, within a context."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AroundImport(MetaPathFinder):
    """Finder for the front of ``sys.meta_path``; it removes itself when its module is found.

    Args:
        name: Full name of the module.
        context: Makes the context in which the module is executed.
    """

    def __init__(self, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
        self.name, self._context = name, context

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec, with a loader that executes it within the context."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            loader: Any = spec.loader
            execute = loader.exec_module

            def within_context(module: ModuleType) -> None:
                with self._context():
                    execute(module)

            loader.exec_module = within_context
        return spec
