"""Import Keras and TensorFlow without optional packages that EPIC does not use through them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from types import ModuleType

from boards.around_import import AroundImport

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
    for name, package in unused.items():
        if name not in sys.modules:
            sys.meta_path.insert(0, AroundImport(name, partial(_missing, package)))


@contextlib.contextmanager
def _missing(package: str) -> Iterator[None]:
    finder = _Missing(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Missing(MetaPathFinder):
    """Finds nothing under a package's name, in the thread that made it."""

    def __init__(self, package: str) -> None:
        self._package, self._thread = package, threading.get_ident()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == self._package and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
