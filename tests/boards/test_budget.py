import pytest

from boards.budget import SMALLEST, Limits, check_budget, limits_of
from boards.graph import Graph, Tensor
from boards.profiles import load_board


def graph(file_bytes=1000, operators=("CONV_2D", "RESHAPE"), dtype="INT8", dynamic=False):
    ends = [Tensor(name, (1, 4), dtype, 0.1, 0, constant=False, dynamic=dynamic) for name in ("in", "out")]
    return Graph(tuple(operators), tuple(ends), (ends[0],), (ends[1],), file_bytes)


def answers(verdicts):
    return {verdict.question: verdict.fits for verdict in verdicts}


def test_what_is_within_every_limit_fits():
    verdicts = check_budget(graph(256 * 1024), 192 * 1024, SMALLEST)
    assert answers(verdicts) == {"model file": True, "tensor arena": True, "operators": True}


def test_one_byte_over_does_not_fit_and_is_said():
    model, arena, _ = check_budget(graph(256 * 1024 + 1), 192 * 1024 + 1, SMALLEST)
    assert model.fits is arena.fits is False
    assert ", 1 B over the 256 KiB of the smallest board" in model.said
    assert ", 1 B over the 192 KiB of the smallest board" in arena.said


def test_an_arena_that_was_not_measured_is_not_called_fitting():
    assert answers(check_budget(graph(), None, SMALLEST))["tensor arena"] is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (graph(operators=("CONV_2D", "GELU")), "operators GELU are not in the device runtime"),
        (graph(dtype="FLOAT32"), "expected int8 tensors throughout, got FLOAT32 in 'in' and 1 more"),
        (graph(dynamic=True), "expected static shapes, got a free axis in 'in'"),
    ],
)
def test_an_encoder_the_runtime_cannot_take_is_refused(made, said):
    verdict = check_budget(made, 1000, SMALLEST)[2]
    assert verdict.fits is False
    assert said in verdict.said


def test_an_operator_is_judged_by_the_board_at_hand():
    bare = Limits("a bare board", 10**6, 10**6, operators=frozenset({"CONV_2D"}))
    assert check_budget(graph(), 1000, bare)[2].fits is False


def test_limits_are_those_of_the_profile():
    limits = limits_of(load_board("openmv-rt1062"))
    assert (limits.arena_bytes, limits.model_bytes) == (512 * 1024, 8 * 1024 * 1024)
    assert limits.target == "OpenMV Cam RT1062"
