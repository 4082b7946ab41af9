"""Real MicroPython for tests: 1.27 as WebAssembly under Node.js, from npm (``.ci/packages`` brings it)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from boards.install.micropython import mcu

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).parent / "micropython" / "run.mjs"
PACKAGE = Path("node_modules/@micropython/micropython-webassembly-pyscript/micropython.mjs")
STUBS = RUNNER.parent / "board"
ROOM = ROOT / "firmware_py"
# framing.py is for the tests of the wire code.
SHARED = (*mcu.SHARED, "protocol/framing.py")


def find_micropython() -> Path:
    """The interpreter's module; skips the test, saying why, where there is none."""
    folder = Path(os.environ.get("EPIC_NODE", ROOT / ".node"))
    if shutil.which("node") is None or not (folder / PACKAGE).exists():
        pytest.skip("MicroPython for Node.js is not installed; run .ci/packages")
    return folder / PACKAGE


def prepare(board: Path, script: str) -> None:
    """Put the device's code and ``script`` on a board, with stand-ins for its hardware: ``machine`` and ``ml``."""
    for path in (*ROOM.glob("micropython/*.py"), *(ROOM / name for name in SHARED)):
        target = board / path.relative_to(ROOM.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for path in STUBS.glob("*.py"):
        shutil.copy(path, board)
    (board / "main.py").write_text("import quiet_time\nquiet_time.install()\n" + script)


def command(board: Path, line: str = "") -> list[str]:
    """What runs a prepared board; ``line`` is its serial port."""
    return ["node", str(RUNNER), str(find_micropython()), str(board), "main.py", *([line] if line else [])]


def run(board: Path, script: str, timeout_s: float = 120.0) -> str:
    """What ``script`` prints with ``board`` as its flash, which gets the code of the device."""
    prepare(board, script)
    return _run(board, timeout_s)


def run_as_is(board: Path, script: str, timeout_s: float = 120.0) -> str:
    """The same with what is on the flash already, and nothing more."""
    (board / "main.py").write_text(script)
    return _run(board, timeout_s)


def _run(board: Path, timeout_s: float) -> str:
    done = subprocess.run(command(board), capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout
