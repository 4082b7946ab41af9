"""Parts are those that training is fed, however few of them are companded at once."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("keras", reason="conversion needs the train extra")

import convert.parts
from convert.parts import Parts
from firmware_py.inference.companding import Companding, quantise
from models.data.gathers import device_parts
from physics.acquisition import Acquisition

SURVEY = Acquisition.from_dict(
    {**Acquisition.openfwi().to_dict(), "device_receivers": [list(range(20)), list(range(20, 70))]}
)
COMPANDING = Companding(20.0, 7.6, 10)


def some_gathers(n):
    return np.random.default_rng(0).normal(scale=5.0, size=(n, 100, 70, 5)).astype(np.float16)


def test_parts_are_those_of_training_in_their_order():
    gathers = some_gathers(5)
    whole = device_parts(gathers, SURVEY, COMPANDING).reshape(10, 100, 50, 5)
    parts = Parts(gathers, SURVEY, COMPANDING)
    assert len(parts) == 10
    for which in (slice(None), slice(3, 8), slice(0, 0), np.array([7, 0, 7])):
        np.testing.assert_array_equal(parts[which], whole[which])


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_codes_are_the_same_in_any_number_of_turns(monkeypatch, at_once):
    monkeypatch.setattr(convert.parts, "PARTS_AT_ONCE", at_once)
    gathers = some_gathers(5)
    expected = quantise(device_parts(gathers, SURVEY, COMPANDING).reshape(10, 100, 50, 5), 0.008, -3)
    np.testing.assert_array_equal(Parts(gathers, SURVEY, COMPANDING).codes(0.008, -3), expected)


def test_many_gathers_take_the_memory_of_their_codes(monkeypatch):
    monkeypatch.setattr(convert.parts, "PARTS_AT_ONCE", 4)
    gathers = some_gathers(60)
    parts = Parts(gathers, Acquisition.openfwi(), COMPANDING)
    tracemalloc.start()
    codes = parts.codes(0.008, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes.nbytes == gathers.nbytes / 2
    # Twice, while what was made in turns is joined.
    assert peak < 3 * codes.nbytes
