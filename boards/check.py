"""Whether a bundle on disk fits a board."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from boards.budget import Verdict, check_budget, limits_of
from boards.graph import read_graph
from boards.profiles import Board
from firmware_py.bundle import load_bundle


class CheckError(ValueError):
    """A bundle cannot be checked."""


def check_bundle(folder: Path, board: Board) -> tuple[Verdict, ...]:
    """Verdicts on ``folder`` (hashes are verified first) against the limits of ``board``.

    Raises ``BundleError`` for a broken bundle and ``GraphError`` for an encoder that is no model.
    """
    load_bundle(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    graph = read_graph((folder / "encoder.tflite").read_bytes())
    return check_budget(graph, manifest.get("arena_bytes"), limits_of(board))


def compiler_note(board: Board) -> str:
    """What has to be compiled for the board's accelerator, and that this check did not; else empty."""
    compiler = board.compiled_for
    if compiler is None:
        return ""
    found = "is on PATH" if shutil.which(compiler) else "is not on PATH"
    return (
        "checked against the documented constraints only; the model still has to be compiled with "
        f"{compiler}, which {found}"
    )
