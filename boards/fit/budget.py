"""Check an encoder against a board's limits: file size, arena, operators."""

from __future__ import annotations

from dataclasses import dataclass

from boards.fit.graph import ALLOWED_OPERATORS, Graph, GraphError, check_graph
from boards.fit.scratch import scratch_bytes
from boards.profile import Board, Compiler
from boards.sizes import format_size


@dataclass(frozen=True)
class Limits:
    """Limits of a target.

    ``target`` names it in messages. ``kernels`` is the kernel library of its runtime. ``compiler`` is that of its
    accelerator, None without one. ``viper`` is True where MicroPython's native code can run the encoder.
    ``heap_blocks`` are those of the heap from which OpenMV's ``ml`` takes arena and model, none elsewhere.
    """

    target: str
    model_bytes: int
    arena_bytes: int
    operators: frozenset[str] = ALLOWED_OPERATORS
    kernels: str = "reference"
    compiler: Compiler | None = None
    viper: bool = False
    heap_blocks: tuple[int, ...] = ()


# Limits of the project's smallest board (docs/architecture.md), which every released encoder must meet.
SMALLEST = Limits("the smallest board", model_bytes=256 * 1024, arena_bytes=192 * 1024)


# Smallest heap in which a compiled device starts, less its encoder's buffers; measured on 32-bit Arm, 2026-11-29, by
# benchmarks/device/micropython_heap.py: 162 KiB do for epic-small-128, 160 KiB do not. 9 KiB of machine code for an
# RP2040, which lie outside the heap there, and 2 KiB of main.py are added. Updates take 8 KiB more.
VIPER_PROGRAM_BYTES = 104 * 1024
# The same beside ``ml``, whose kernels are the firmware's: 120 KiB did before the spool took 9 KiB more.
ML_PROGRAM_BYTES = 136 * 1024
# Extra bytes of OpenMV's ``ml``: in an arena (TF_ARENA_EXTRA and alignment), and in a model (a cache line at each end).
ML_ARENA_EXTRA_BYTES, ML_MODEL_EXTRA_BYTES = 528, 64


SMALLER_ARENA = (
    "train with more decimation (epic train --decimation) or a smaller encoder (--encoder micro): input and first "
    "feature map are the largest term"
)


@dataclass(frozen=True)
class Verdict:
    """Result of one check. ``fits`` is None if it could not be decided. ``advice`` says how to make the encoder fit."""

    question: str
    fits: bool | None
    said: str
    advice: str = ""


def limits_of(board: Board) -> Limits:
    """Return the limits of a board profile."""
    return Limits(
        board.title,
        model_bytes=board.model_limit.size,
        arena_bytes=board.arena_limit.size,
        operators=frozenset(board.operators.names),
        kernels=board.kernels.name if board.kernels else "reference",
        compiler=board.compiler,
        viper=board.runtime in ("viper", "ml"),
        heap_blocks=board.heap.blocks if board.heap else (),
    )


def operators_verdict(graph: Graph, limits: Limits) -> Verdict:
    """Check that the model is int8, static, and uses only operators of the target's runtime."""
    try:
        check_graph(graph, limits.operators)
    except GraphError as error:
        return Verdict("operators", False, str(error), "replace the layer by one of those operators")
    return Verdict("operators", True, f"{', '.join(graph.operator_counts)}; all int8, static")


def model_verdict(model_bytes: int, limits: Limits) -> Verdict:
    """Check that the model file fits its storage."""
    return _size(
        "model file",
        model_bytes,
        limits.model_bytes,
        limits.target,
        f"{model_bytes:,} B",
        "train a smaller encoder: epic train epic --encoder micro",
    )


def arena_verdict(graph: Graph, arena_bytes: int | None, source: str, limits: Limits) -> Verdict:
    """Check that the tensors (``arena_bytes``, None if unknown, from ``source``) and scratch buffers fit."""
    if arena_bytes is None:
        return Verdict(
            "tensor arena", None, f"{source}; {limits.target} has {format_size(limits.arena_bytes)}"
        )
    needed, said = _arena(graph, arena_bytes, source, limits)
    return _size("tensor arena", needed, limits.arena_bytes, limits.target, said, SMALLER_ARENA)


def ml_heap_verdict(
    graph: Graph, model_bytes: int, arena_bytes: int | None, source: str, limits: Limits
) -> Verdict:
    """Check that the heap's blocks hold arena, model and program; ``ml`` reads a model that lies on FAT into RAM."""
    blocks = " + ".join(format_size(block) for block in limits.heap_blocks)
    if arena_bytes is None:
        return Verdict("heap", None, f"{source}; {limits.target} has {blocks}")
    arena, said = _arena(graph, arena_bytes, source, limits)
    wanted = (arena + ML_ARENA_EXTRA_BYTES, model_bytes + ML_MODEL_EXTRA_BYTES)
    said = f"arena of {said}, model of {model_bytes:,} B in RAM, {ML_PROGRAM_BYTES:,} B for the program"
    if any(_holds(limits.heap_blocks, order) for order in (wanted, wanted[::-1])):
        return Verdict("heap", True, f"{said}, in blocks of {blocks} on {limits.target}")
    return Verdict(
        "heap", False, f"{said}: too much for blocks of {blocks} on {limits.target}", SMALLER_ARENA
    )


def _holds(blocks: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return True if each of ``wanted`` fits a block (best fit) and the remaining bytes hold the program."""
    free = sorted(blocks)
    for size in wanted:
        place = next((i for i, block in enumerate(free) if block >= size), None)
        if place is None:
            return False
        free[place] -= size
        free.sort()
    return sum(free) >= ML_PROGRAM_BYTES


def _arena(graph: Graph, arena_bytes: int, source: str, limits: Limits) -> tuple[int, str]:
    """Return the arena with the scratch buffers of the target's kernels, in bytes, and a text that lists both."""
    # Scratch sizes can be computed only for int8 models.
    scratch = scratch_bytes(graph, limits.kernels) if operators_verdict(graph, limits).fits else 0
    margin = f" and {scratch:,} B for scratch buffers of {limits.kernels}" if scratch else ""
    return arena_bytes + scratch, f"{arena_bytes:,} B {source}{margin}"


def heap_verdict(buffer_bytes: int, limits: Limits) -> Verdict:
    """Check that MicroPython's heap holds the executor's buffers and the device's program."""
    return _size(
        "heap",
        buffer_bytes + VIPER_PROGRAM_BYTES,
        sum(limits.heap_blocks) or limits.arena_bytes,
        limits.target,
        f"{buffer_bytes:,} B of buffers and {VIPER_PROGRAM_BYTES:,} B for the program",
        "take a smaller encoder (epic train --encoder)",
    )


def _size(question: str, needed: int, limit: int, target: str, said: str, advice: str) -> Verdict:
    if needed <= limit:
        return Verdict(question, True, f"{said}, of {format_size(limit)} on {target}")
    return Verdict(
        question,
        False,
        f"{said}: {needed - limit:,} B over the {format_size(limit)} of {target}",
        f"to stay within {format_size(limit)} {advice}",
    )
