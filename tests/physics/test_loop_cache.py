"""Compiled loops are kept on disk wherever a folder can be written, and no fault of that disk ends a computation."""

import errno
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from physics.engines.openfwi import LoopCache, compile_loops

PHYSICS = Path(__file__).parents[2] / "physics"


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """Return a function that loads a module of one loop anew, as a new process would, and compiles it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "loops.py").write_text("def double(n):\n    return 2 * n\n")

    def load():
        spec = importlib.util.spec_from_file_location("loops", tmp_path / "loops.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return compile_loops(module.double)

    return load


def hits(compiled):
    return sum(compiled.stats.cache_hits.values())


def test_the_next_process_reads_what_was_compiled(loop):
    assert loop()(3) == 6
    again = loop()
    assert again(3) == 6 and hits(again) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [b"", b"\0" * 500, "half"])
def test_a_file_that_a_power_cut_damaged_is_compiled_and_written_again(loop, tmp_path, suffix, left):
    loop()(3)
    (path,) = (tmp_path / "cache").rglob(f"*.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if left == "half" else left)
    assert loop()(3) == 6
    third = loop()
    assert third(3) == 6 and hits(third) == 1


def test_a_full_disk_costs_the_cache_only(loop, monkeypatch):
    def no_space(self, sig, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LoopCache.__bases__[0], "save_overload", no_space)
    assert loop()(3) == 6


def test_a_cache_folder_that_is_gone_or_a_file_costs_the_cache_only(loop, tmp_path):
    compiled = loop()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    assert compiled(3) == 6


@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({"XDG_CACHE_HOME": "user"}, "user/numba"),
        ({"XDG_CACHE_HOME": "user", "NUMBA_CACHE_DIR": "named"}, "named"),
        ({"XDG_CACHE_HOME": "taken/user"}, None),
    ],
    ids=["user", "named", "nowhere"],
)
def test_an_installation_that_its_user_cannot_write_keeps_loops_elsewhere(tmp_path, variables, kept):
    """Installed by root and run as a user; a service has no home either, and compiles in every process."""
    shutil.copytree(PHYSICS, tmp_path / "physics", ignore=shutil.ignore_patterns("__pycache__"))
    # A file in its place keeps root out as well.
    (tmp_path / "physics" / "engines" / "__pycache__").write_text("")
    (tmp_path / "taken").write_text("")
    paths = {name: str(tmp_path / value) for name, value in variables.items()}
    found = subprocess.run(
        [sys.executable, "-Bc", "from physics.engines import openfwi; print(openfwi.step.stats.cache_path)"],
        env={"PATH": "/usr/bin:/bin", **paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(tmp_path / kept) if kept else "None"), found.stdout
