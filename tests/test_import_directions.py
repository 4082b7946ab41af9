"""No import goes against the table of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("boards", "central", "convert", "firmware_py", "models", "physics", "testbed")

# What each room may import of the project; None is all of it.
ALLOWED: dict[str, tuple[str, ...] | None] = {
    "physics": (),
    "firmware_py": (),
    "boards": ("firmware_py",),
    "models": ("physics", "firmware_py.inference.companding", "firmware_py.protocol.rate"),
    "convert": (
        "models",
        "boards",
        "physics",
        "firmware_py.inference.bundle",
        "firmware_py.inference.companding",
        "firmware_py.inference.encoder",
        "firmware_py.protocol.rate",
        "firmware_py.inference.self_test",
    ),
    "central": ("models", "physics", "firmware_py"),
    "testbed": None,
}

# Heavy packages that a device, or a glance at the store, must never load.
FORBIDDEN_ON_DEVICE = ("tensorflow", "keras", "torch", "typer", "rich", "pydantic", "matplotlib", "scipy")


def imports_of(source: str) -> set[str]:
    """Dotted names that a module's source imports, wherever in it; ``from a import b`` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(room: str, source: str) -> list[str]:
    allowed = ALLOWED[room]
    bad = []
    for name in sorted(imports_of(source)):
        top = name.split(".")[0]
        if room == "firmware_py" and top in FORBIDDEN_ON_DEVICE:
            bad.append(name)
        if top not in ROOMS or top == room or allowed is None:
            continue
        if not any(name == entry or name.startswith(entry + ".") for entry in allowed):
            bad.append(name)
    return bad


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room):
    modules = list((ROOT / room).rglob("*.py"))
    assert modules, f"{room} is empty"
    found = {str(path.relative_to(ROOT)): violations(room, path.read_text()) for path in modules}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("physics", "from models.networks.encoder import build_encoder"),
        ("firmware_py", "def f():\n    import physics.families"),
        ("firmware_py", "import tensorflow as tf"),
        ("models", "from firmware_py.inference.bundle import load_bundle"),
        ("central", "from convert import flow"),
        ("boards", "import convert"),
    ],
)
def test_a_planted_violation_is_found(room, source):
    assert violations(room, source)


def test_no_room_imports_the_tests_or_a_package_named_pycoral():
    """The package of that name in the registry is another project (a coral-reef atlas)."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports_of(path.read_text())}
            assert not tops & {"tests", "pycoral"}, path
