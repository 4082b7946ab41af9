"""Check whether an encoder fits a board: measure, compile where possible, and report verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.errors import BoardsError
from boards.fit import edgetpu, tflm, vela
from boards.fit.accelerator import Compiled, CompilerError
from boards.fit.budget import (
    Limits,
    Verdict,
    arena_verdict,
    heap_verdict,
    limits_of,
    ml_heap_verdict,
    model_verdict,
    operators_verdict,
)
from boards.fit.epicnn import EpicnnError, compile_encoder, read_memory
from boards.fit.graph import Graph, read_graph
from boards.profile import Board
from firmware_py.inference.bundle import load_bundle

NOT_MEASURED = f"not measured: {tflm.MISSING}"


class CheckError(BoardsError, ValueError):
    """The bundle cannot be checked."""


@dataclass(frozen=True)
class Assessment:
    """Assessment of an encoder on a target.

    ``arena_bytes`` is TFLite-Micro's arena on this machine without scratch buffers, None if unknown; ``arena_source``
    says where it comes from. ``accelerator`` is the manifest's entry for a target with an accelerator (``done`` is
    "compiled" or "documented constraints"). ``compiled`` is the compiler's result.
    """

    graph: Graph
    arena_bytes: int | None
    arena_source: str
    verdicts: tuple[Verdict, ...]
    compiled: Compiled | None = None
    accelerator: dict[str, Any] | None = None

    @property
    def fits(self) -> bool | None:
        """True if every check passed, False if one failed, None if none failed but one is undecided."""
        answers = [verdict.fits for verdict in self.verdicts]
        return False if False in answers else None if None in answers else True


def check_bundle(folder: Path, board: Board) -> Assessment:
    """Verify the bundle in ``folder``, then ``assess`` it against the limits of ``board``.

    Raises:
        BundleError: The bundle is damaged.
        GraphError: The encoder is not a TFLite model.
    """
    bundle = load_bundle(folder)
    stated = bundle.manifest.get("arena_bytes")
    if stated is not None and (not isinstance(stated, int) or stated <= 0):
        raise CheckError(
            f"{folder}: arena_bytes of the manifest: expected a number of bytes or null, got {stated!r}; convert again"
        )
    return assess(bundle.encoder_path.read_bytes(), limits_of(board), stated)


def assess(model: bytes, limits: Limits, stated_arena_bytes: int | None = None) -> Assessment:
    """Check the encoder ``model`` (content of the .tflite file) against ``limits``.

    The arena is measured if TFLite-Micro is installed; otherwise ``stated_arena_bytes`` from the manifest is used.

    Raises:
        GraphError: The bytes are not a TFLite model.
    """
    graph = read_graph(model)
    if limits.heap_blocks:
        return _assess_for_ml(model, graph, limits, stated_arena_bytes)
    if limits.viper:
        return Assessment(
            graph, None, "no tensor arena: stock MicroPython", _on_stock_micropython(model, graph, limits)
        )
    operators = operators_verdict(graph, limits)
    try:
        arena_bytes, source = _arena(model, stated_arena_bytes)
        arena = arena_verdict(graph, arena_bytes, source, limits)
    except tflm.TflmError as error:
        arena_bytes, source = None, str(error)
        arena = Verdict("tensor arena", False, source, "replace or shrink the layer it names")
    verdicts = [operators]
    compiled, accelerator = None, None
    if limits.compiler is not None and operators.fits:
        more, compiled, accelerator = _COMPILERS[limits.compiler.name](model, graph, limits)
        verdicts += more
    if compiled is not None and compiled.sram_bytes is not None:
        # Use the NPU's arena plan in place of the processor's.
        arena = arena_verdict(graph, compiled.sram_bytes, f"planned by {compiled.compiler}", limits)
    file = model_verdict(len(compiled.model) if compiled else graph.file_bytes, limits)
    return Assessment(graph, arena_bytes, source, (file, arena, *verdicts), compiled, accelerator)


def _assess_for_ml(model: bytes, graph: Graph, limits: Limits, stated_arena_bytes: int | None) -> Assessment:
    """Verdicts for OpenMV's ``ml``; where it cannot, for MicroPython's native code, to which the device then turns."""
    arena_bytes: int | None = None
    try:
        arena_bytes, source = _arena(model, stated_arena_bytes)
        heap = ml_heap_verdict(graph, graph.file_bytes, arena_bytes, source, limits)
    except tflm.TflmError as error:
        source = str(error)
        heap = Verdict("heap", False, source, "replace or shrink the layer it names")
    verdicts: tuple[Verdict, ...] = (
        model_verdict(graph.file_bytes, limits),
        heap,
        operators_verdict(graph, limits),
    )
    if any(verdict.fits is False for verdict in verdicts):
        native = _on_stock_micropython(model, graph, limits)
        if all(verdict.fits for verdict in native):
            refused = "; ".join(verdict.said for verdict in verdicts if verdict.fits is False)
            verdicts = (*native, Verdict("runtime", True, f"native code (viper); not ml: {refused}"))
    return Assessment(graph, arena_bytes, source, verdicts)


def _on_stock_micropython(model: bytes, graph: Graph, limits: Limits) -> tuple[Verdict, ...]:
    """Verdicts on the encoder as it is compiled for viper."""
    try:
        compiled = compile_encoder(model)
    except EpicnnError as error:
        return (Verdict("operators", False, str(error), "replace that layer"),)
    return (
        model_verdict(len(compiled), limits),
        heap_verdict(read_memory(compiled).total, limits),
        operators_verdict(graph, limits),
    )


def _arena(model: bytes, stated_bytes: int | None) -> tuple[int | None, str]:
    """Return the arena and its source.

    Raises:
        TflmError: TFLite-Micro is installed and cannot run the model.
    """
    if not tflm.available():
        return (
            stated_bytes,
            NOT_MEASURED if stated_bytes is None else "as the manifest states (not measured here)",
        )
    measured = tflm.measure_arena_bytes(model)
    source = f"measured in TFLite-Micro {tflm.version()}"
    if stated_bytes not in (None, measured):
        source += f" (the manifest states {stated_bytes:,} B)"
    return measured, source


_Outcome = tuple[list[Verdict], Compiled | None, dict[str, Any]]


def _for_ethos_u(model: bytes, graph: Graph, limits: Limits) -> _Outcome:
    assert limits.compiler is not None
    if not vela.available():
        verdict = Verdict("Ethos-U", None, f"not compiled: {vela.MISSING}")
        return [verdict], None, {"compiler": "vela", "done": "not compiled"}
    try:
        compiled = vela.compile_encoder(model, limits.compiler.options, limits.arena_bytes)
    except CompilerError as error:
        verdict = Verdict("Ethos-U", False, str(error), "use only the operators and sizes that Vela supports")
        return [verdict], None, {"compiler": "vela", "done": "not compiled"}
    said = (
        f"{compiled.operators_mapped} operators on the NPU, {compiled.cycles:,} cycles, "
        f"{compiled.inference_ms:.2f} ms, {compiled.sram_bytes:,} B of SRAM (estimated by Vela {compiled.version})"
    )
    return [_mapped("Ethos-U", compiled, said)], compiled, {"done": "compiled", **compiled.to_dict()}


def _for_edge_tpu(model: bytes, graph: Graph, limits: Limits) -> _Outcome:
    broken = edgetpu.broken_constraints(graph)
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        verdict = Verdict("Edge TPU", False, f"{broken[0]}{more}", "change that layer")
        return [verdict], None, {"compiler": edgetpu.COMPILER, "done": "documented constraints"}
    if not edgetpu.available():
        said = f"its documented constraints hold; not compiled, {edgetpu.MISSING}"
        record = {"compiler": edgetpu.COMPILER, "done": "documented constraints"}
        return [Verdict("Edge TPU", True, said)], None, record
    try:
        compiled = edgetpu.compile_encoder(model)
    except CompilerError as error:
        verdict = Verdict(
            "Edge TPU", False, str(error), "see that the compiler runs by hand, then check again"
        )
        return [verdict], None, {"compiler": edgetpu.COMPILER, "done": "documented constraints"}
    said = f"{compiled.operators_mapped} operators mapped by {edgetpu.COMPILER} {compiled.version}"
    return [_mapped("Edge TPU", compiled, said)], compiled, {"done": "compiled", **compiled.to_dict()}


def _mapped(question: str, compiled: Compiled, said: str) -> Verdict:
    if not compiled.on_cpu:
        return Verdict(question, True, f"{said}, none left on the CPU")
    left = ", ".join(compiled.on_cpu)
    return Verdict(
        question, False, f"left on the CPU by {compiled.compiler}: {left}", "replace or shrink those layers"
    )


_COMPILERS: dict[str, Callable[[bytes, Graph, Limits], _Outcome]] = {
    "vela": _for_ethos_u,
    "edgetpu_compiler": _for_edge_tpu,
}
