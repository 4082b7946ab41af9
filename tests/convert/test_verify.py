import numpy as np
import pytest

pytest.importorskip("keras", reason="conversion needs the train extra")

from convert.errors import ConversionError
from convert.verify import (
    Agreement,
    MapError,
    Verification,
    centred_sqnr_db,
    check_gate,
    compare,
    float_latents,
    mean_map_error,
)


def verification(mae_float, mae_int8, mae_int8_micro=0.0, n=100, mae_mean_map=1.0):
    error = MapError(n, mae_float, mae_int8, mae_int8_micro)
    return Verification(30.0, error, {}, Agreement(1, 0.0, 0, 0.0), None, 0.0, {}, mae_mean_map)


def test_the_ratio_of_a_tenth_of_noise_is_20_db():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(2000, 16))
    noise = 0.1 * rng.normal(size=(2000, 16))
    assert centred_sqnr_db(signal, signal + noise) == pytest.approx(20.0, abs=0.2)


def test_a_constant_offset_of_the_latent_earns_nothing():
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(500, 8)), 0.1 * rng.normal(size=(500, 8))
    plain = centred_sqnr_db(signal, signal + noise)
    assert centred_sqnr_db(signal + 1000, signal + 1000 + noise) == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize(("mae_float", "mae_int8"), [(0.1, 0.103), (0.1, 0.09), (0.1, 0.1)])
def test_the_gate_lets_three_percent_pass(mae_float, mae_int8):
    check_gate(verification(mae_float, mae_int8))


def test_a_model_that_is_no_better_than_the_mean_map_is_refused():
    with pytest.raises(ConversionError, match=r"no better than the mean map: MAE 0\.5990.* 0\.3720"):
        check_gate(verification(0.599, 0.599, mae_mean_map=0.372))
    few = verification(0.599, 0.599, n=10, mae_mean_map=0.372)
    check_gate(few)
    assert len(few.warnings) == 2 and few.warnings[0].startswith("only 10 test samples")
    assert verification(0.1, 0.1, mae_mean_map=0.372).warnings == []


def test_the_mean_map_is_that_of_the_other_samples():
    maps = np.array([-0.5, 0.5, 0.0], np.float32)[:, None, None] * np.ones((3, 4, 5), np.float32)
    others = [abs(-0.5 - 0.25), abs(0.5 + 0.25), 0.0]
    assert mean_map_error(maps) == pytest.approx(np.mean(others))
    assert mean_map_error(maps[:1]) == float("inf")


@pytest.mark.parametrize(
    ("mae_float", "mae_int8"), [(0.1, 0.1031), (0.1, 0.2), (0.0, 0.1), (0.1, float("nan"))]
)
def test_the_gate_stops_more_and_what_cannot_be_measured(mae_float, mae_int8):
    with pytest.raises(ConversionError, match=r"int8 raises the error .* allowed are 3 %"):
        check_gate(verification(mae_float, mae_int8))


def test_the_gate_judges_the_worse_of_the_two_runtimes():
    with pytest.raises(ConversionError, match=r"MAE 0\.1000 -> 0\.2000"):
        check_gate(verification(0.1, 0.1, mae_int8_micro=0.2))


def test_runtimes_are_compared_element_by_element_without_overflow():
    a, b = np.array([[127, 0, 5, 5]], np.int8), np.array([[-128, 0, 4, 5]], np.int8)
    assert compare(a, b) == Agreement(
        latents=1, differing_fraction=0.5, max_difference_lsb=255, beyond_one_step_fraction=0.25
    )


class Constant:
    """An encoder that answers ``value`` plus a little of its input."""

    def __init__(self, value, share):
        self.value, self.share = value, share

    def __call__(self, parts, training):
        return self.value + self.share * parts.reshape(len(parts), -1)[:, :4]


PARTS = np.random.default_rng(0).normal(size=(70, 5, 4, 2)).astype(np.float32)


def test_latents_of_all_batches_come_back_in_order():
    np.testing.assert_array_equal(float_latents(Constant(0.0, 1.0), PARTS), PARTS.reshape(70, -1)[:, :4])


@pytest.mark.parametrize("encoder", [Constant(0.0, 0.0), Constant(1.0, 1e-4)])
def test_a_latent_that_hardly_varies_is_a_collapse(encoder):
    with pytest.raises(ConversionError, match="it has collapsed"):
        float_latents(encoder, PARTS)


def test_a_latent_that_is_not_finite_is_refused():
    with pytest.raises(ConversionError, match="expected finite latents"):
        float_latents(Constant(np.nan, 1.0), PARTS)
