"""Import Keras and TensorFlow without optional packages that EPIC does not use through them."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Module -> optional package that it tries to import, for functions that EPIC never calls.
UNUSED = {
    "keras.src.callbacks.orbax_checkpoint": "jax",
    "keras.src.trainers.data_adapters.array_slicing": "pandas",
    "keras.src.visualization.plot_image_gallery": "matplotlib",
    "keras.src.visualization.plot_bounding_box_gallery": "matplotlib",
    "tensorflow.lite.python.util": "jax",
}


def skip_unused_packages(unused: Mapping[str, str] = UNUSED) -> None:
    """Have each module of ``unused``, when it is first imported, find its optional package missing.

    The packages take a third of the processor time of TensorFlow's import. Other modules import them as ever.

    Args:
        unused: Module -> top-level package. Modules that are imported already are ignored.
    """
    pending = {name: package for name, package in unused.items() if name not in sys.modules}
    if pending:
        sys.meta_path.insert(0, _Skipping(pending))


class _Skipping(MetaPathFinder):
    def __init__(self, pending: dict[str, str]) -> None:
        self._pending = pending
        self._missing = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == getattr(self._missing, "package", None):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        package = self._pending.pop(fullname, None)
        if package is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            loader: Any = spec.loader
            execute = loader.exec_module

            def without_package(module: ModuleType) -> None:
                self._missing.package = package
                try:
                    execute(module)
                finally:
                    self._missing.package = None

            loader.exec_module = without_package
        return spec
