"""Imports without optional packages that are of no use: those alone are missing, and only where it says."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from boards.lean_imports import UNUSED, skip_unused_packages

TRIES = "try:\n    import heavy\nexcept ImportError:\n    heavy = None\n"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two modules that try to import ``heavy``, of which ``spared`` does without."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name, text in {"spared": TRIES, "needs": TRIES, "heavy": "import light\n", "light": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    skip_unused_packages({"spared": "heavy"})
    yield
    for name in ("spared", "needs", "heavy", "light"):
        sys.modules.pop(name, None)


def test_a_package_is_missing_for_the_named_module_alone(modules):
    assert importlib.import_module("spared").heavy is None
    assert "heavy" not in sys.modules
    assert importlib.import_module("needs").heavy.light


def test_a_module_that_fails_hides_nothing_from_the_next(modules, tmp_path):
    (tmp_path / "spared.py").write_text("raise OSError('broken')\n")
    with pytest.raises(OSError, match="broken"):
        importlib.import_module("spared")
    assert importlib.import_module("needs").heavy


def test_a_package_that_is_loaded_already_is_there(modules):
    heavy = importlib.import_module("heavy")
    assert importlib.import_module("spared").heavy is heavy


@pytest.mark.parametrize("name", UNUSED)
def test_the_installed_modules_try_these_packages_and_go_on_without(name):
    top, *below = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        pytest.skip(f"needs {top}, which the extra train installs")
    source = Path(spec.submodule_search_locations[0], *below).with_suffix(".py").read_text()
    tried = rf"^try:\n    (import|from) {UNUSED[name]}\b.*?^except ImportError:"
    assert re.search(tried, source.replace("\n  from", "\n    from"), re.MULTILINE | re.DOTALL)
