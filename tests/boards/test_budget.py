import pytest

from boards.fit.budget import (
    SMALLEST,
    Limits,
    arena_verdict,
    limits_of,
    ml_heap_verdict,
    model_verdict,
    operators_verdict,
)
from boards.fit.graph import Graph, Step, Tensor
from boards.profile import load_board

MEASURED = "measured in a test"


def graph(operators=("CONV_2D", "RESHAPE"), dtype="INT8", dynamic=False):
    ends = [
        Tensor(name, (1, 4, 4, 4), dtype, 0.1, 0, constant=False, dynamic=dynamic) for name in ("in", "out")
    ]
    steps = tuple(Step(operator, (ends[0], ends[0]), (ends[1],)) for operator in operators)
    return Graph(steps, tuple(ends), (ends[0],), (ends[1],), 1000)


def test_what_is_within_every_limit_fits():
    assert model_verdict(256 * 1024, SMALLEST).fits is True
    assert arena_verdict(graph(), 192 * 1024, MEASURED, SMALLEST).fits is True
    assert operators_verdict(graph(), SMALLEST).fits is True


def test_one_byte_over_does_not_fit_and_is_said():
    model = model_verdict(256 * 1024 + 1, SMALLEST)
    arena = arena_verdict(graph(), 192 * 1024 + 1, MEASURED, SMALLEST)
    assert model.fits is arena.fits is False
    assert ": 1 B over the 256 KiB of the smallest board" in model.said
    assert ": 1 B over the 192 KiB of the smallest board" in arena.said
    assert "--encoder micro" in model.advice
    assert "--decimation" in arena.advice


def test_scratch_buffers_can_be_what_is_too_many():
    limits = Limits("a board", 10**6, 192 * 1024, kernels="cmsis-nn")
    arena = arena_verdict(graph(), 192 * 1024 - 10, MEASURED, limits)
    assert arena.fits is False
    assert "B measured in a test and 272 B for scratch buffers of cmsis-nn: 262 B over" in arena.said


def test_an_arena_that_was_not_measured_is_not_called_fitting():
    verdict = arena_verdict(graph(), None, "not measured", SMALLEST)
    assert verdict.fits is None
    assert verdict.said == "not measured; the smallest board has 192 KiB"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (graph(operators=("CONV_2D", "GELU")), "operators GELU are not in the device runtime"),
        (graph(dtype="FLOAT32"), "expected int8 tensors throughout, got FLOAT32 in 'in' and 1 more"),
        (graph(dynamic=True), "expected static shapes, got a free axis in 'in'"),
    ],
)
def test_an_encoder_the_runtime_cannot_take_is_refused(made, said):
    verdict = operators_verdict(made, SMALLEST)
    assert verdict.fits is False
    assert said in verdict.said


def test_an_operator_is_judged_by_the_board_at_hand():
    bare = Limits("a bare board", 10**6, 10**6, operators=frozenset({"CONV_2D"}))
    assert operators_verdict(graph(), bare).fits is False


def test_limits_are_those_of_the_profile():
    limits = limits_of(load_board("openmv-rt1062"))
    assert (limits.arena_bytes, limits.model_bytes) == (8 * 1024 * 1024, 2 * 1024 * 1024)
    assert limits.target == "OpenMV Cam RT1062"
    assert limits.kernels == "cmsis-nn"
    assert limits.heap_blocks == (64 * 1024, 204 * 1024, 8 * 1024 * 1024)
    assert limits.compiler is None


def ml_limits(*blocks):
    return Limits("a board", 10**6, max(blocks), kernels="cmsis-nn", heap_blocks=blocks)


@pytest.mark.parametrize(
    ("blocks_kib", "fits"),
    [
        # 60 kB of arena and 100 kB of model beside 136 KiB of program: in one block, or each in one of its own.
        ((300,), True),
        ((100, 200), True),
        ((64, 100, 140), True),
        # The sum is enough, and no block holds the model.
        ((90, 90, 90, 90), False),
        # Both fit, and what is left is too little for the program.
        ((64, 100, 100), False),
    ],
)
def test_ml_takes_arena_and_model_each_from_one_block_of_the_heap(blocks_kib, fits):
    limits = ml_limits(*(kib * 1024 for kib in blocks_kib))
    verdict = ml_heap_verdict(graph(), 100_000, 60_000, MEASURED, limits)
    assert verdict.fits is fits
    assert "model of 100,000 B in RAM" in verdict.said
    assert bool(verdict.advice) is not fits


def test_an_arena_that_was_not_measured_leaves_the_heap_undecided():
    assert ml_heap_verdict(graph(), 1000, None, "not measured", ml_limits(10**6)).fits is None
