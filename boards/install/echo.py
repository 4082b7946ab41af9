"""Print what an installation does and what a board says."""

from __future__ import annotations

import typer

from firmware_py.protocol.printable import printable_lines


def echo(text: str) -> None:
    """Print ``text``; a board's words in it are escaped, so that the terminal does not obey them."""
    typer.echo(printable_lines(text))
