"""Keep a benchmark's work folder to one set of options."""

from __future__ import annotations

import json
from pathlib import Path

from physics.files.atomic import atomic_write

NAME = "options.json"


def claim(work: Path, **options: object) -> None:
    """Note the options of a run in its folder, unless the folder holds results of others.

    Args:
        work: Folder, made if there is none. One without a note is taken to have these options.
        options: All that the kept results depend on, except what is in their names.

    Raises:
        SystemExit: The folder holds results of other options. They would be printed as those of this run.
    """
    wanted = {name: str(value) for name, value in options.items()}
    path = work / NAME
    if path.exists():
        held = json.loads(path.read_text())
        if others := [name for name in wanted if held.get(name) != wanted[name]]:
            raise SystemExit(
                f"{work}: expected results of this run's options, found "
                + ", ".join(f"{name} {held.get(name)} in place of {wanted[name]}" for name in others)
                + "; give the same options, or another folder"
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2))
