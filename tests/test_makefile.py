"""Which Python `make` takes, and what a wrong one leaves behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def fake_python(folder: Path, name: str, code: int) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)


@pytest.fixture
def make(tmp_path):
    """Calls make in a folder with the Makefile alone: ``make(target)``; ``bin`` comes first on the path."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "rm", "mkdir"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def call(*arguments):
        return subprocess.run(
            [shutil.which("make"), *arguments],
            cwd=tmp_path,
            env={"PATH": str(tmp_path / "bin"), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_python_that_works_is_found(make, tmp_path, version):
    fake_python(tmp_path / "bin", f"python{version}", 0)
    assert f"python{version} -m venv .venv" in make("-n", ".venv/bin/python").stdout


def test_a_wrong_python_is_said_and_leaves_nothing(make, tmp_path):
    fake_python(tmp_path / "bin", "python3", 1)
    done = make(".venv/bin/python")
    assert done.returncode and "expected Python 3.11 to 3.13" in done.stderr
    assert not os.path.exists(tmp_path / ".venv")
