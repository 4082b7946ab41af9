"""What the program's messages advise exists: options, extras, and the package's name."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import typer

import epic

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("boards", "central", "convert", "firmware_py", "models", "physics", "testbed")
OPTION = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]*[a-z0-9]")
EXTRA = re.compile(r"\.\[([a-z0-9,-]+)\]")
# Options of other programs, that ours start or name.
OTHERS = re.compile(r"ssh|systemctl|journalctl|curl|docker|pip |setpriv|mpremote|tensorboard |--nthreads")


def texts(path: Path) -> list[str]:
    """The strings of a module but its docstrings; of one that is put together, its fixed parts."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def modules() -> list[Path]:
    return [ROOT / "epic.py", *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))]


def options(command) -> set[str]:
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found


def test_every_option_that_a_message_names_is_one_of_ours():
    known = {"--help", "--version"}
    for module, _, _ in epic.GROUPS.values():
        known |= options(typer.main.get_command(importlib.import_module(module).app))
    # Programs of their own declare theirs by add_argument.
    for path in modules():
        known |= set(re.findall(r'add_argument\(\s*"(--[a-z0-9-]+)"', path.read_text()))
    wrong = {
        f"{path.relative_to(ROOT)}: {option} in {text[:80]!r}"
        for path in modules()
        for text in texts(path)
        if " " in text and not OTHERS.search(text)
        for option in OPTION.findall(text)
        if option not in known
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_every_extra_that_a_message_names_is_declared_and_the_package_is_not_on_an_index():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in modules():
        for text in texts(path):
            assert "epic-fwi[" not in text, path
            for names in EXTRA.findall(text):
                assert set(names.split(",")) <= extras.keys(), (path, names)
