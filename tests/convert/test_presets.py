"""The three encoders fit what they are meant for, before any training."""

import keras
import numpy as np
import pytest
from quantising import quantise_here

from boards.fit import tflm
from boards.fit.budget import SMALLEST
from boards.fit.graph import read_graph
from models.networks.encoder import PRESETS, build_encoder, encoder_preset
from physics.acquisition import Acquisition

pytestmark = pytest.mark.slow

SURVEY = Acquisition.openfwi()
KIB = 1024
# Largest arena and largest file: micro has half of the smallest board's flash, base a Pi's share.
LIMITS = {
    "micro": (128 * KIB, 128 * KIB),
    "small": (SMALLEST.arena_bytes, SMALLEST.model_bytes),
    "base": (768 * KIB, 1024 * KIB),
}
LATENTS = {"micro": 64, "small": 128, "base": 256}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_in_int8(name):
    pytest.importorskip("tflite_micro", reason="needs the extra tflm (the TFLite-Micro interpreter)")
    keras.utils.set_random_seed(0)
    encoder = build_encoder(encoder_preset(name, SURVEY, 10))
    parts = np.random.default_rng(0).normal(scale=0.3, size=(2, 100, 14, 5)).astype(np.float32)
    model = quantise_here(encoder, parts)
    arena_limit, file_limit = LIMITS[name]
    assert len(model) <= file_limit
    assert tflm.measure_arena_bytes(model) <= arena_limit
    assert read_graph(model).outputs[0].shape == (1, LATENTS[name])
