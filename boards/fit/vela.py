"""Compile an encoder for an Ethos-U with Arm's Vela; report cycles, memory and operators left on the CPU."""

from __future__ import annotations

import csv
import importlib.util
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from boards.fit.accelerator import Compiled, CompilerError, run_compiler
from boards.fit.graph import read_graph

MISSING = "the package ethos-u-vela is not installed (extra `vela`)"
NPU_OPERATOR = "CUSTOM:ethos-u"


def available() -> bool:
    """Return True if Vela is installed."""
    return importlib.util.find_spec("ethosu") is not None


def compile_encoder(model: bytes, options: tuple[str, ...], sram_bytes: int) -> Compiled:
    """Compile ``model`` by Vela with ``options``, its feature maps limited to ``sram_bytes``.

    Raises:
        CompilerError: Vela failed; the message has its output.
    """
    with tempfile.TemporaryDirectory(prefix="epic-vela-") as name:
        folder = Path(name)
        (folder / "encoder.tflite").write_bytes(model)
        # A separate process: Vela reads its arguments from the command line and prints progress.
        command = [
            sys.executable,
            "-c",
            "import sys; from ethosu.vela.vela import main; sys.exit(main(sys.argv[1:]))",
        ]
        command += ["encoder.tflite", *options, "--arena-cache-size", str(sram_bytes), "--output-dir", "."]
        compiled = folder / "encoder_vela.tflite"
        run_compiler("Vela", command, makes=compiled)
        summaries = list(folder.glob("encoder_summary_*.csv"))
        if len(summaries) != 1:
            raise CompilerError(f"Vela failed: expected one summary of it, got {len(summaries)}")
        with summaries[0].open(newline="") as file:
            *_, summary = csv.DictReader(file)
        result = compiled.read_bytes()
    # Operators that Vela does not support stay in the graph unchanged and are missing in its estimates.
    operators = read_graph(result).operators
    return Compiled(
        compiler="vela",
        version=metadata.version("ethos-u-vela"),
        model=result,
        operators_mapped=len(read_graph(model).operators) - sum(op != NPU_OPERATOR for op in operators),
        on_cpu=tuple(op for op in operators if op != NPU_OPERATOR),
        sram_bytes=round(float(summary["sram_memory_used"]) * 1024),
        cycles=round(float(summary["cycles_total"])),
        inference_ms=float(summary["inference_time"]) * 1000,
    )
