"""What the documents say to type exists: groups, commands and options, also in those that no test carries out."""

import importlib
import re
from pathlib import Path

import pytest
import typer

import epic

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*/README.md", "firmware_py/*/README.md", "models/zoo/*/CARD.md")
    for path in ROOT.glob(pattern)
    if "epic " in path.read_text()
)
BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```$|((?:^ {4}.*\n)+)", re.MULTILINE | re.DOTALL)
# A command ends where the shell, a comment or the block's next column begins.
TYPED = re.compile(r"(?:^|[\s`$&(])epic ((?:(?!&&|\||#|`|\n).)+)")


def typed(text: str) -> list[list[str]]:
    """The words after ``epic`` of each command in a document's blocks and in its running text's code."""
    blocks = "\n".join((a or b).replace("\\\n", " ") for a, b in BLOCK.findall(text))
    inline = "\n".join(re.findall(r"`(epic [^`\n]+)`", text))
    commands = TYPED.findall(f"{blocks}\n{inline}")
    return [re.sub(r"[\[\]]|\.\.\.", " ", command).split() for command in commands]


@pytest.fixture(scope="module")
def tree():
    """Each group's command, loaded once."""
    loaded = {}

    def command(group):
        if group not in loaded:
            top = typer.main.get_command(importlib.import_module(epic.GROUPS[group][0]).app)
            loaded[group] = getattr(top, "commands", {}).get(group, top)
        return loaded[group]

    return command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_to_be_typed_exists(document, tree):
    for words in typed(document.read_text()):
        if words[0].startswith("-") or words[0] == "GROUP":
            continue
        shown = " ".join(["epic", *words])
        assert words[0] in epic.GROUPS, f"{shown}: no such group"
        command, rest = tree(words[0]), words[1:]
        while getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
            # `list|show` names several.
            for name in rest[0].split("|"):
                assert name in command.commands, f"{shown}: no such command as {name!r}"
            command, rest = command.commands[rest[0].split("|")[0]], rest[1:]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for word in rest:
            option = word.split("=")[0].rstrip(",;.")
            if re.fullmatch(r"--?[a-z][a-z-]*", option):
                assert option in known, f"{shown}: no such option as {option!r}"


def test_what_does_not_exist_would_be_found(tree, tmp_path):
    for line in ("epic weather", "epic central rain", "epic data import x.sgy --loudness 3"):
        document = tmp_path / "a.md"
        document.write_text(f"```sh\n{line}\n```\n")
        with pytest.raises(AssertionError, match="no such"):
            test_what_is_to_be_typed_exists(document, tree)
