"""A function of more than 60 lines or 7 parameters is split, or has its reason above it.

The reason is a comment of one or two lines directly above the function or its decorators. It begins with ``# Large:``.

A docstring does not count as lines, nor ``self`` as a parameter. The options of a command are not counted, because each
has its help beside it; the lines after them are. A command is decorated as one, or is a public function of a
``*cli.py`` module.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "boards", "central", "convert", "firmware_py", "models", "physics", "testbed")
MAX_LINES, MAX_PARAMETERS = 60, 7
MARK = "# Large: "
MAX_COMMENT_LINES = 2


@dataclass(frozen=True)
class Function:
    """A function's size; ``reason_line`` is the line number of its ``# Large:`` comment, or None."""

    name: str
    line: int
    lines: int
    parameters: int
    reason_line: int | None

    @property
    def large(self) -> bool:
        return self.lines > MAX_LINES or self.parameters > MAX_PARAMETERS


@cache
def functions(path: Path) -> list[Function]:
    """Return the functions of a module, nested ones and methods too."""
    text = path.read_text()
    lines = text.splitlines()
    return [
        _measure(node, lines, path)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _measure(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], path: Path) -> Function:
    command = _is_command(node, path)
    first = node.body[0].lineno if command else node.lineno
    count = node.end_lineno - first + 1
    if ast.get_docstring(node):
        count -= node.body[0].end_lineno - node.body[0].lineno + 1
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    parameters = 0 if command else len(names) - (names[:1] in (["self"], ["cls"]))
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return Function(node.name, node.lineno, count, parameters, _reason_line(lines, start))


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> bool:
    decorators = [one.func for one in node.decorator_list if isinstance(one, ast.Call)]
    decorated = any(
        isinstance(one, ast.Attribute) and one.attr in ("command", "callback") for one in decorators
    )
    return decorated or (path.stem.endswith("cli") and not node.name.startswith("_"))


def _reason_line(lines: list[str], start: int) -> int | None:
    """Return the line number of the comment that begins with ``MARK`` above line ``start``, both from 1."""
    for number in range(start - 1, max(start - 1 - MAX_COMMENT_LINES, 0), -1):
        line = lines[number - 1].strip()
        if line.startswith(MARK):
            return number
        if not line.startswith("#"):
            return None
    return None


def marked_lines(path: Path) -> set[int]:
    """Return the line numbers of ``# Large:`` comments."""
    lines = path.read_text().splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.strip().startswith(MARK.strip())}


def unexplained(path: Path) -> list[str]:
    """Return the large functions without a reason, as path:line name (lines, parameters)."""
    return [
        f"{path}:{one.line} {one.name} ({one.lines}, {one.parameters})"
        for one in functions(path)
        if one.large and one.reason_line is None
    ]


def needless(path: Path) -> list[str]:
    """Return the ``# Large:`` comments that do not stand above a large function, as path:line."""
    needed = {one.reason_line for one in functions(path) if one.large}
    return [f"{path}:{number}" for number in sorted(marked_lines(path) - needed)]


@pytest.fixture(scope="module")
def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_a_large_function_has_a_reason(modules):
    found = [line for path in modules for line in unexplained(path)]
    assert not found, f"split them, or write a comment {MARK!r} above them (lines, parameters): {found}"


def test_a_reason_stands_above_a_large_function(modules):
    found = [line for path in modules for line in needless(path)]
    assert not found, f"remove these comments; no large function follows them: {found}"


LONG = "def long(self, a, b):\n    '''Doc.'''\n" + "    a += b\n" * MAX_LINES
SHORT = "def short(a):\n    return a\n"
WIDE = f"def wide({', '.join(f'p{n}' for n in range(MAX_PARAMETERS + 1))}):\n    pass\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "module.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_docstring_and_self_do_not_count(write):
    (one,) = functions(write(LONG))
    assert (one.lines, one.parameters) == (MAX_LINES + 1, 2)


@pytest.mark.parametrize("text", [LONG, WIDE, f"{MARK}far away.\n\n{LONG}", f"# Not a reason.\n{LONG}"])
def test_a_large_function_without_a_reason_is_found(write, text):
    assert len(unexplained(write(text))) == 1


@pytest.mark.parametrize("comment", [f"{MARK}one line.\n", f"{MARK}two\n# lines.\n"])
@pytest.mark.parametrize("decorator", ["", "@cache\n"])
@pytest.mark.parametrize("function", [LONG, WIDE])
def test_a_reason_above_a_large_function_is_read(write, comment, decorator, function):
    path = write(comment + decorator + function)
    assert unexplained(path) == needless(path) == []


def test_a_reason_above_a_small_function_is_found(write):
    assert len(needless(write(f"{MARK}needless.\n{SHORT}"))) == 1


def test_the_lines_of_a_command_count_but_its_options_do_not(write):
    options = "".join(
        f"    p{n}: Annotated[\n        int, typer.Option(help='Help.')\n    ],\n" for n in range(30)
    )
    command = f"@app.command()\ndef command(\n{options}) -> None:\n    pass\n"
    assert not unexplained(write(command))
    assert len(unexplained(write(command + "    print()\n" * MAX_LINES, "long.py"))) == 1
    plain = command.removeprefix("@app.command()\n")
    assert not unexplained(write(plain, "fetch_cli.py"))
    assert len(unexplained(write(plain.replace("def ", "def _"), "helper_cli.py"))) == 1
