"""Result of compiling an encoder for a board's accelerator."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.errors import BoardsError

TIMEOUT_S = 600


class CompilerError(BoardsError, ValueError):
    """A compiler failed on an encoder, or its output cannot be parsed."""


@dataclass(frozen=True)
class Compiled:
    """An encoder compiled for an accelerator.

    ``on_cpu`` names the operators left on the processor, each with the reason. ``sram_bytes``, ``cycles`` and
    ``inference_ms`` are the compiler's own estimates, None if it makes none.
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
        """Suffix that the compiler appends to a model's name."""
        return self.compiler.removesuffix("_compiler")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values, without the model itself."""
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
    """Run a compiler in its folder until it has made the file ``makes``, and return its output.

    Raises:
        CompilerError: The compiler failed, timed out or made no file; the message has its last line.
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
