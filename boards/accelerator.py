"""What the compiler of a board's accelerator makes of an encoder, as far as it is known here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class CompilerError(ValueError):
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
