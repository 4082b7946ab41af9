"""Imports follow the table of docs/architecture.md, and no module imports itself through others."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("boards", "central", "convert", "firmware_py", "models", "physics", "testbed")


def read_table(text: str) -> dict[str, tuple[str, ...] | None]:
    """What each package may import of the project; None is all of it."""
    allowed: dict[str, tuple[str, ...] | None] = {}
    for name, cell in re.findall(r"^\| `(\w+)/` \|.*\| ([^|]+) \|$", text, re.MULTILINE):
        entries: list[str] = []
        for package, parts in re.findall(r"`(\w+)`(?: \(([^)]*)\))?", cell):
            modules = re.findall(r"`([\w.]+)`", parts)
            entries += [f"{package}.{module}" for module in modules] or [package]
        allowed[name] = None if cell.startswith("all") else tuple(entries)
    return allowed


ALLOWED = read_table((ROOT / "docs" / "architecture.md").read_text())

# Heavy packages that a device, or a glance at the store, must never load.
FORBIDDEN_ON_DEVICE = ("tensorflow", "keras", "numba", "typer", "rich", "pydantic", "matplotlib", "scipy")


def imports_of(source: str) -> set[str]:
    """Dotted names that a module's source imports, wherever in it; ``from a import b`` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one found; empty without one."""
    done: set[str] = set()

    def follow(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := follow(other, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := follow(name, []))), [])


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


def test_the_table_is_read():
    assert set(ALLOWED) == set(ROOMS)
    assert ALLOWED["physics"] == () and ALLOWED["testbed"] is None
    shared = ("inference.companding", "inference.hush", "protocol.rate", "runtime.toml_keys")
    assert ALLOWED["models"] == ("physics", *(f"firmware_py.{module}" for module in shared))


def test_no_module_imports_itself_through_others():
    """Imports within functions count, and literal names given to ``import_module``."""
    found = modules()
    graph = {}
    for name, path in found.items():
        source = path.read_text()
        imported = imports_of(source) | set(re.findall(r'import_module\("([\w.]+)"\)', source))
        # ``from a import b`` imports the module a.b, or the name b out of the module a.
        named = {one if one in found else one.rpartition(".")[0] for one in imported}
        graph[name] = (named & set(found)) - {name}
    assert find_cycle(graph) == []


def test_a_planted_cycle_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_room_imports_the_tests_or_a_package_named_pycoral():
    """The package of that name in the registry is another project (a coral-reef atlas)."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports_of(path.read_text())}
            assert not tops & {"tests", "pycoral"}, path
