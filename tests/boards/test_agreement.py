"""TFLite-Micro's interpreter, as a microcontroller runs it, against LiteRT on the released encoder.

``benchmarks/device/agreement.py`` compares 200 gathers.
"""

from itertools import cycle

import numpy as np
import pytest

from boards.fit import tflm
from convert import litert
from convert.verify import MAX_BEYOND_ONE_STEP_FRACTION, MAX_RUNTIME_DIFFERENCE_LSB, compare
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import compand, quantise
from physics.acquisition import Acquisition
from testbed.run import find_model
from testbed.samples import load_samples

pytestmark = pytest.mark.slow

RELEASED = find_model(None).bundle
GATHERS = 20
# Recordings are never twice as strong or as noisy: gains, and noise relative to the gather's own.
VARIANTS = ((1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, 0.001), (1.0, 0.01))


@pytest.fixture(scope="module")
def codes():
    """int8 input of every device for the shipped gathers, half of them mirrored, scaled and with noise."""
    bundle = load_bundle(RELEASED)
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    rng = np.random.default_rng(0)
    half_mirrored = [
        sample.gather[::-1, :, ::-1] if n % 2 else sample.gather for n, sample in enumerate(load_samples())
    ]
    gathers = [
        gain * gather + (noise * gather.std() * rng.normal(size=gather.shape) if noise else 0)
        for gather, (gain, noise) in zip(half_mirrored, cycle(VARIANTS), strict=False)
    ]
    assert len(gathers) == GATHERS
    parts = [gather[:, :, list(group)] for gather in gathers for group in acquisition.device_receivers]
    return np.stack(
        [
            quantise(
                compand(part, bundle.companding, bundle.width), bundle.input.scale, bundle.input.zero_point
            )
            for part in parts
        ]
    )


@pytest.mark.emulated
@pytest.mark.skipif(not tflm.available(), reason=tflm.MISSING)
def test_tflite_micro_gives_the_latents_of_litert_but_for_roundings(codes):
    model = (RELEASED / "encoder.tflite").read_bytes()
    kernels = litert.run(model, codes, xnnpack=False)
    apart = compare(tflm.run(model, codes, tflm.measure_arena_bytes(model)), kernels)
    assert apart.latents == 5 * GATHERS
    # By a step where the rounding of sums and depthwise convolutions differs, 19 % of the values (8 % of the encoder
    # before, whose errors of the map were no less), and hardly ever by two.
    assert apart.differing_fraction < 0.25
    assert apart.max_difference_lsb <= MAX_RUNTIME_DIFFERENCE_LSB
    assert apart.beyond_one_step_fraction < MAX_BEYOND_ONE_STEP_FRACTION
    # Latents that hardly differ from one another would be near each other whatever was computed.
    assert kernels.std(axis=0).mean() > 5
    # XNNPACK rescales in floating point: more values differ, still by a step or two (docs/results/boards.md).
    assert compare(litert.run(model, codes), kernels).max_difference_lsb <= 2
