"""Each package has one base error, and its ``errors.py`` draws the whole tree."""

import ast
from pathlib import Path

import pytest

import epic

ROOT = Path(__file__).parent.parent
PACKAGES = ("boards", "central", "convert", "firmware_py", "models", "physics", "testbed")
# Run on MicroPython, with errors of their own.
OWN = {ROOT / "firmware_py" / "micropython", ROOT / "firmware_py" / "digitisers"}


def error_classes(package: str) -> dict[str, list[str]]:
    """Names of bases of each error class of a package."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        if OWN & set(path.parents):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.bases and node.name.endswith("Error"):
                found[node.name] = [ast.unparse(base) for base in node.bases]
    return found


@pytest.mark.parametrize(("package", "base"), zip(PACKAGES, epic.base_errors(), strict=True))
def test_every_error_comes_of_the_base_and_is_in_the_tree(package, base):
    classes = error_classes(package)
    tree = ast.get_docstring(ast.parse((ROOT / package / "errors.py").read_text()))
    assert base.__module__ == f"{package}.errors"
    for name, bases in classes.items():
        assert name == base.__name__ or any(one in classes for one in bases), (
            f"{name} is not of {base.__name__}"
        )
        assert name in tree.split(), f"draw {name} into {package}/errors.py"


def test_an_error_of_any_package_is_one_line(capsys):
    assert epic.main(["board", "show", "no-such-board"]) == 2
    assert capsys.readouterr().err.startswith("error: no board 'no-such-board'")
