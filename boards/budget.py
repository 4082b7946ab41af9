"""Whether an encoder fits a board: its file, its arena, its operators."""

from __future__ import annotations

from dataclasses import dataclass

from boards.graph import ALLOWED_OPERATORS, Graph, GraphError, check_graph
from boards.profiles import Board
from boards.sizes import format_size


@dataclass(frozen=True)
class Limits:
    """What a target carries. ``target`` names it in messages."""

    target: str
    model_bytes: int
    arena_bytes: int
    operators: frozenset[str] = ALLOWED_OPERATORS


# The smallest board of the project (docs/architecture.md): what every released encoder must fit.
SMALLEST = Limits("the smallest board", model_bytes=256 * 1024, arena_bytes=192 * 1024)


@dataclass(frozen=True)
class Verdict:
    """One question asked of an encoder. ``fits`` is None where it could not be answered."""

    question: str
    fits: bool | None
    said: str


def limits_of(board: Board) -> Limits:
    """The limits a board profile states."""
    return Limits(
        board.title,
        model_bytes=board.model_limit.size,
        arena_bytes=board.arena_limit.size,
        operators=frozenset(board.operators.names),
    )


def check_budget(graph: Graph, arena_bytes: int | None, limits: Limits) -> tuple[Verdict, ...]:
    """Verdicts on file size, arena and operators; ``arena_bytes`` None where it was not measured."""
    try:
        check_graph(graph, limits.operators)
    except GraphError as error:
        operators = Verdict("operators", False, str(error))
    else:
        operators = Verdict("operators", True, f"{', '.join(graph.operator_counts)}; all int8, static")
    return (
        _size("model file", graph.file_bytes, limits.model_bytes, limits.target),
        _size("tensor arena", arena_bytes, limits.arena_bytes, limits.target),
        operators,
    )


def _size(question: str, needed: int | None, limit: int, target: str) -> Verdict:
    if needed is None:
        return Verdict(question, None, f"not measured; {target} has {format_size(limit)}")
    if needed <= limit:
        return Verdict(question, True, f"{needed:,} B of {format_size(limit)} on {target}")
    return Verdict(
        question,
        False,
        f"{needed:,} B, {needed - limit:,} B over the {format_size(limit)} of {target}",
    )
