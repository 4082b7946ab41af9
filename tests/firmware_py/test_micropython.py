"""What runs on MicroPython keeps to what it has; nothing here needs a MicroPython."""

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "firmware_py"
FILES = [
    ROOM / "errors.py",
    *(ROOM / "protocol" / name for name in ("packet.py", "framing.py", "frame_authenticator.py")),
    *ROOM.glob("micropython/*.py"),
]
PARTS = {f"firmware_py.micropython.{path.stem}" for path in ROOM.glob("micropython/*.py")}
MODULES = {
    "struct",
    "binascii",
    "hashlib",
    "firmware_py",
    "firmware_py.errors",
    "firmware_py.micropython",
    "firmware_py.protocol",
    "firmware_py.protocol.frame_authenticator",
    *PARTS,
}
# In every MicroPython; then in the firmware of boards that run the whole device.
STANDARD = {"array", "gc", "json", "math", "os", "random", "select", "socket", "sys", "time"}
BOARDS = {"esp32", "machine", "micropython", "ml", "network", "pyb", "rp2"}


def decorators_of(node: ast.FunctionDef) -> list[ast.expr]:
    """A function's decorators besides ``property``, which MicroPython has."""
    return [one for one in node.decorator_list if not (isinstance(one, ast.Name) and one.id == "property")]


def foreign(source: str) -> list[str]:
    """What in a module's source stock MicroPython lacks, or this project keeps out of these files."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name not in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module not in MODULES:
            found.append(f"from {node.module}")
        elif isinstance(node, (ast.AnnAssign, ast.JoinedStr, ast.Match)):
            found.append(type(node).__name__)
        elif isinstance(node, ast.FunctionDef) and (decorators_of(node) or node.returns):
            found.append(f"decorated or annotated {node.name}")
        elif isinstance(node, ast.arg) and node.annotation:
            found.append(f"annotated {node.arg}")
        elif isinstance(node, ast.ClassDef) and (node.decorator_list or node.keywords):
            found.append(f"decorated {node.name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_what_micropython_has(path):
    more = STANDARD | BOARDS if path.parent.name == "micropython" else set()
    assert [one for one in foreign(path.read_text()) if one.removeprefix("from ") not in more] == []


@pytest.mark.parametrize(
    "source",
    [
        "import enum",
        "from dataclasses import dataclass",
        "from __future__ import annotations",
        "x: int = 1",
        "def f(x: int): pass",
        "def f() -> int: pass",
        "f'{x!r:>10}'",
        "@dataclass\nclass A: pass",
        "class A:\n    @cache\n    def f(self): pass",
        "class A(metaclass=M): pass",
    ],
)
def test_a_planted_violation_is_found(source):
    assert foreign(source)
