"""The ``epic`` command and the Python interface of EPIC.

Command: one group of sub-commands a package, each loaded only when it is called. Python::

    import epic
    result = epic.load_model("epic-small-128").invert(gather)
    result.plot(); result.to_netcdf("map.nc")
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boards.lean_imports import skip_unused_packages
from boards.quiet import import_without_greetings

# Group -> (module with `app`, what it is for, extra of the package that it needs).
GROUPS: dict[str, tuple[str, str, str]] = {
    "data": ("physics.cli", "Make, import and draw data sets.", "central"),
    "train": ("models.cli", "Train a network.", "train"),
    "evaluate": ("models.cli", "Errors of a trained run on a test set.", "train"),
    "convert": ("convert.cli", "Convert a trained run to an int8 bundle.", "convert"),
    "adapt": ("convert.adapt_cli", "Adapt a released model's decoder to other ground.", "convert"),
    "board": ("boards.cli", "Board profiles, and installation on boards.", "central"),
    "invert": (
        "central.pipeline.invert_cli",
        "Predict the maps of gathers, without devices.",
        "central,edge",
    ),
    "central": ("central.cli", "The central node: receive latents, predict maps.", "central"),
    "keys": ("central.security.keys_cli", "Keys of the centre, its devices and gateways.", "central"),
    "doctor": ("central.doctor_cli", "Check an installation and report what to fix.", "central"),
    "testbed": ("testbed.cli", "Five devices and a centre on this machine.", "central,edge"),
}

# Packages that a command asks for when it comes to them -> extra.
EXTRA_OF = {
    "segyio": "geo",
    "obspy": "geo",
    "zarr": "geo",
    "zstandard": "testbed",
}

# Options that typer adds to every command.
COMPLETION = ("install_completion", "show_completion")

# Here and not in `main`: the processes that a command starts import this module alone, with the command's arguments.
import_without_greetings("tensorflow")
# A notebook's own Keras keeps its packages.
if Path(*sys.argv[:1]).stem == "epic":
    skip_unused_packages()


if TYPE_CHECKING:
    from central.api import Inversion, Model, load_model

__all__ = ["Inversion", "Model", "load_model", "main", "version"]


def __getattr__(name: str) -> Any:
    """Load the Python interface when it is first asked for: the command line starts without it."""
    if name in ("Inversion", "Model", "load_model"):
        return getattr(importlib.import_module("central.api"), name)
    raise AttributeError(f"module 'epic' has no attribute {name!r}")


def version() -> str:
    from importlib import metadata

    return metadata.version("epic-fwi")


def _usage() -> str:
    lines = ["usage: epic GROUP ...", "", "Distributed full-waveform inversion at the edge.", ""]
    lines += [f"  {name:<10} {text}" for name, (_, text, _) in GROUPS.items()]
    return "\n".join([*lines, "", "`epic GROUP --help` says more. `epic --version` prints the version."])


def base_errors() -> tuple[type[Exception], ...]:
    """The base error of each package."""
    from boards.errors import BoardsError
    from central.errors import CentralError
    from convert.errors import ConversionError
    from firmware_py.errors import FirmwareError
    from models.errors import ModelsError
    from physics.errors import PhysicsError
    from testbed.errors import TestbedError

    return (
        BoardsError,
        CentralError,
        ConversionError,
        FirmwareError,
        ModelsError,
        PhysicsError,
        TestbedError,
    )


def _complain(message: object) -> None:
    """Print an error; text of devices, servers and files in it is not obeyed by the terminal."""
    from firmware_py.protocol.printable import printable_lines

    print(f"error: {printable_lines(str(message))}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run ``epic``; returns the exit code: 0 well, 1 failed, 2 wrong use or input, 130 interrupted.

    A package's errors become one line on standard error. One that has an ``exit_code`` of its own ends with it.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if given else 2
    if given[0] == "--version":
        print(f"epic {version()}")
        return 0
    if given[0] not in GROUPS:
        print(f"error: unknown group {given[0]!r}; known are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    # TensorFlow's start-up notes are no news to a user; set before it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow turns oneDNN on by itself only for recent Intel processors. On an AMD Zen 3 a training step takes 1.2 s
    # with it, and 2.1 s without.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    module_name, _, extra = GROUPS[given[0]]
    try:
        import typer

        module = importlib.import_module(module_name)
    except ImportError as error:
        print(
            f"error: epic {given[0]} needs {error.name or error}; pip install -e '.[{extra}]'",
            file=sys.stderr,
        )
        return 2
    command = typer.main.get_command(module.app)
    # A shell cannot complete a command of two words.
    command.params = [param for param in command.params if param.name not in COMPLETION]
    # A module may serve several groups (`train`, `evaluate`): then the group is its sub-command.
    rest = given if given[0] in getattr(command, "commands", {}) else given[1:]
    try:
        result = command.main(
            args=rest, prog_name="epic" if rest is given else f"epic {given[0]}", standalone_mode=False
        )
    except ImportError as error:
        extra = EXTRA_OF.get(error.name or "", "all")
        print(f"error: this needs {error.name or error}; pip install -e '.[{extra}]'", file=sys.stderr)
        return 2
    except OSError as error:
        # A disk that is full, a path that is none, a port that is taken: it says which and why.
        _complain(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if isinstance(error, base_errors()):
            _complain(error)
            return getattr(error, "exit_code", 2)
        # click's own usage errors know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return error.exit_code
        raise
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
