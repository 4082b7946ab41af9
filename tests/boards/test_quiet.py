"""The first import of a module that greets on the error stream, as TensorFlow does from C++."""

import importlib
import sys

import pytest

from boards.quiet import import_without_greetings

GREETS = """
import os
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
os.write(2, b"I0000 00:00:1795639172.4 29110 port.cc:153] custom operations are on\\n")
os.write(2, b"E0000 00:00:1795639172.5 29110 cuda.cc:1] no driver\\n")
"""


@pytest.fixture
def greeting(tmp_path, monkeypatch):
    """Writes the module ``greets`` with what more is in it; not imported, and its first import hushed."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    def write(more: str) -> None:
        (tmp_path / "greets.py").write_text(GREETS + more)
        importlib.invalidate_caches()
        import_without_greetings("greets")

    yield write
    sys.modules.pop("greets", None)


def test_greetings_are_dropped_and_errors_are_not(greeting, capfd):
    greeting("ANSWER = 42\n")
    assert importlib.import_module("greets").ANSWER == 42
    said = capfd.readouterr().err
    assert said == "E0000 00:00:1795639172.5 29110 cuda.cc:1] no driver\n"


def test_an_import_that_fails_fails_as_before_and_says_what_it_said(greeting, capfd):
    greeting('import os\nos.write(2, b"cannot go on\\n")\nraise OSError("broken")\n')
    with pytest.raises(OSError, match="broken"):
        importlib.import_module("greets")
    assert "no driver\ncannot go on\n" in capfd.readouterr().err


def test_a_module_that_is_not_there_is_not_there(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    import_without_greetings("no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")
