"""What the baselines send, and that the centre gets it back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from physics.acquisition import Acquisition
from testbed.samples import load_samples
from testbed.schemes import (
    SCHEMES,
    SchemeError,
    central_decoder,
    compress_part,
    device_encoder,
    expand_part,
    prepare,
)

SURVEY = Acquisition.openfwi()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.floats(-60, 60, width=32),
    )
)
def test_a_compressed_part_comes_back_within_half_a_step(part):
    half_step = np.abs(part).max() / 32767 / 2
    assert np.abs(expand_part(compress_part(part), part.shape) - part).max() <= half_step * 1.01 + 1e-30


def test_seismograms_shrink_tenfold_and_more():
    part = load_samples()[0].gather[:, :, :14]
    assert len(compress_part(part)) < part.nbytes / 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemes")
    prepare(folder, np.stack([sample.gather for sample in load_samples()[:4]]), SURVEY, None)
    return folder


@pytest.fixture(scope="module")
def drawn(prepared):
    """By scheme: map of all devices, map without the middle one, bytes of a device."""
    gather = load_samples()[0].gather
    results = {}
    for scheme in SCHEMES:
        payloads = {
            device: device_encoder(scheme, prepared, list(group))(gather[:, :, list(group)])
            for device, group in enumerate(SURVEY.device_receivers)
        }
        draw = central_decoder(scheme, prepared)
        without = {device: data for device, data in payloads.items() if device != 2}
        results[scheme] = (draw(payloads), draw(without), len(payloads[0]))
    return results


def test_every_scheme_draws_a_map_of_all_devices_and_of_four(drawn):
    for whole, partial, _ in drawn.values():
        assert whole.shape == partial.shape == (70, 70)
        assert np.abs(whole - partial).max() > 0


def test_split_and_compressed_draw_what_raw_draws(drawn):
    raw = drawn["raw"][0]
    assert np.corrcoef(raw.ravel(), drawn["split"][0].ravel())[0, 1] > 0.95, "int8 activations"
    assert np.abs(drawn["raw-compressed"][0] - raw).max() < 0.05 * raw.std()


def test_bytes_are_those_of_the_payload_without_padding(drawn):
    assert {scheme: size for scheme, (_, _, size) in drawn.items() if scheme != "raw-compressed"} == {
        "raw": 5 * 1000 * 14 * 4,
        "split": 63 * 14 * 128,
        "federated": 70 * 70 * 2,
    }


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    gathers = load_samples()[0].gather[None]
    with pytest.raises(SchemeError, match="not a finished run of `epic train inversionnet`"):
        prepare(tmp_path, gathers, SURVEY, tmp_path / "nowhere")
