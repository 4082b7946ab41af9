"""Options that commands of ``epic central`` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CONFIG_VARIABLE = "EPIC_CONFIG"
ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        envvar=CONFIG_VARIABLE,
        default_factory=lambda: Path("central.toml"),
        show_default="central.toml",
        help="The centre's configuration.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SurveyOption = Annotated[
    int | None, typer.Option(min=0, max=0xFFFF, help="Number of the survey, if there are several.")
]
EventArgument = Annotated[int, typer.Argument(min=0, max=0xFFFFFFFF, help="Number of the event.")]
