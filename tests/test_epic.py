"""The ``epic`` command: light to start, one line for every error."""

import subprocess
import sys

import pytest

import epic


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "epic", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_names_every_group():
    shown = run("--help")
    assert shown.returncode == 0
    assert all(group in shown.stdout for group in epic.GROUPS)


@pytest.mark.parametrize("group", epic.GROUPS)
def test_a_group_offers_no_shell_completion(group, capsys):
    """A shell cannot complete a command of two words."""
    assert epic.main([group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--help" in shown and "completion" not in shown


def test_version():
    assert run("--version").stdout.startswith("epic ")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["data", "--help"], ["central", "--help"], ["testbed", "--help"]]
)
def test_asking_for_help_loads_no_heavy_package(arguments):
    code = (
        "import sys, epic\n"
        f"epic.main({arguments!r})\n"
        "heavy = {'tensorflow', 'keras', 'numba', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weather"], "unknown group 'weather'"),
        (["data", "generate", "salt", "--out", "x"], "family: expected one of"),
        (["train", "epic", "--data", "/nowhere", "--out", "x"], "either --minutes or --epochs"),
        (["train", "epic", "--data", "/nowhere", "--out", "x", "--epochs", "1"], "/nowhere: no such folder"),
        (["evaluate", "/nowhere", "--data", "/nowhere"], "expected a run folder"),
        (["convert", "/nowhere", "--out", "x"], "expected a run folder"),
        (["central", "run", "--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
        (["central", "list", "--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
        (["testbed", "run", "--model", "/nowhere", "--out", "x"], "expected one of epic-base-256"),
        (["board", "show", "toaster"], "toaster"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert epic.main(arguments) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown
    assert shown.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in shown


def test_wrong_use_exits_2_and_shows_the_usage(capsys):
    assert epic.main(["central", "run"]) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "spared"), [("notebook.py", False), ("epic.py", True)])
def test_only_the_command_hides_packages_from_keras(name, spared):
    """A notebook that imports epic may train on its own data frames."""
    code = (
        f"import sys; sys.argv = ['/somewhere/{name}']; import epic; "
        "print(any(getattr(one, 'name', '').startswith('keras.') for one in sys.meta_path))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(spared)
