"""What the compiler of a board's accelerator makes of an encoder, as far as it is known here."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.errors import BoardsError

TIMEOUT_S = 600


class CompilerError(BoardsError, ValueError):
    """A compiler failed on an encoder, or said something that is not understood."""


@dataclass(frozen=True)
class Compiled:
    """An encoder compiled for an accelerator. ``on_cpu`` names what was left to the processor, each with why.

    ``sram_bytes``, ``cycles`` and ``inference_ms`` are the compiler's own estimate, None where it makes none.
    """

    compiler: str
    version: str
    model: bytes
    operators_mapped: int
    on_cpu: tuple[str, ...]
    sram_bytes: int | None = None
    cycles: int | None = None
    inference_ms: float | None = None

    @property
    def suffix(self) -> str:
        """What the compiler itself appends to a model's name."""
        return self.compiler.removesuffix("_compiler")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, without the model itself."""
        return {
            "compiler": self.compiler,
            "version": self.version,
            "bytes": len(self.model),
            "operators_mapped": self.operators_mapped,
            "on_cpu": list(self.on_cpu),
            "sram_bytes": self.sram_bytes,
            "cycles": self.cycles,
            "inference_ms": self.inference_ms,
        }


def run_compiler(name: str, command: list[str], makes: Path) -> str:
    """What the compiler prints when it has made the file ``makes`` in its folder, where it is run.

    Raises ``CompilerError`` with its last line when it fails, makes nothing or does not end.
    """
    try:
        ran = subprocess.run(command, cwd=makes.parent, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CompilerError(f"{name} failed: no end after {TIMEOUT_S} s") from None
    said = ran.stdout + ran.stderr
    if ran.returncode or not makes.exists():
        lines = [line for line in said.splitlines() if line.strip()]
        raise CompilerError(f"{name} failed: {lines[-1] if lines else f'exit code {ran.returncode}'}")
    return said
