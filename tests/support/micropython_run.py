"""Real MicroPython for tests: 1.27 as WebAssembly under Node.js, from npm (``.ci/packages`` brings it)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).parent / "micropython" / "run.mjs"
PACKAGE = Path("node_modules/@micropython/micropython-webassembly-pyscript/micropython.mjs")
ROOM = ROOT / "firmware_py"


def find_micropython() -> Path:
    """The interpreter's module; skips the test, saying why, where there is none."""
    folder = Path(os.environ.get("EPIC_NODE", ROOT / ".node"))
    if shutil.which("node") is None or not (folder / PACKAGE).exists():
        pytest.skip("MicroPython for Node.js is not installed; run .ci/packages")
    return folder / PACKAGE


def run(board: Path, script: str, timeout_s: float = 120.0) -> str:
    """What ``script`` prints with ``board`` as its flash, which gets the wire code of the device."""
    (board / "firmware_py").mkdir(exist_ok=True)
    for name in ("__init__.py", "packet.py", "framing.py", "seal.py"):
        shutil.copy(ROOM / name, board / "firmware_py")
    (board / "main.py").write_text(script)
    command = ["node", str(RUNNER), str(find_micropython()), str(board), "main.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout
