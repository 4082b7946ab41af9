"""Released models by name: ``epic-small-128`` is ``models/zoo/epic-small-128``, wherever a command is called."""

from __future__ import annotations

from pathlib import Path

from models.errors import ModelsError

ZOO = Path(__file__).parent / "zoo"
DEFAULT_NAME = "epic-small-128"


class ModelNotFoundError(ModelsError, ValueError):
    """No released model has this name, and no folder of a model is there."""


def find_release(model: str | Path) -> Path:
    """Return the folder, with bundle/ and decoder/, of a released model's name or of a path.

    Raises:
        ModelNotFoundError: It is neither.
    """
    for folder in (Path(model), ZOO / model):
        if (folder / "bundle").is_dir() and (folder / "decoder").is_dir():
            return folder
    known = ", ".join(sorted(path.name for path in ZOO.iterdir() if (path / "bundle").is_dir()))
    raise ModelNotFoundError(
        f"model: expected one of {known}, or a folder with bundle/ and decoder/ as `epic convert` writes it; got "
        f"{model}"
    )
