"""What the baselines send, and that the centre gets it back."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firmware_py.inference.companding import Companding, compand
from models.networks.federated import build_federated
from physics.acquisition import Acquisition
from testbed.comparison.baselines import (
    SCHEMES,
    SchemeError,
    central_decoder,
    compress_part,
    device_encoder,
    expand_part,
    find_trained,
    prepare,
    training_of,
)
from testbed.samples import load_samples

SURVEY = Acquisition.openfwi()
COMPANDING = Companding(20.0, 7.6, 10)
GATHERS = np.stack([sample.gather for sample in load_samples()[:4]])


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
    prepare(folder, GATHERS, SURVEY, COMPANDING, {})
    return folder


@pytest.fixture(scope="module")
def drawn(prepared):
    """By scheme: map of all devices, map without the middle one, bytes of a device."""
    gather = load_samples()[0].gather
    results = {}
    for scheme in SCHEMES:
        payloads = {
            device: device_encoder(scheme, prepared)(gather[:, :, list(group)])
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


@pytest.mark.long
def test_a_trained_federated_network_draws_the_mean_of_its_devices_maps(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    folder.mkdir()
    companding = Companding(5.0, 6.0, 20)
    network, local = build_federated(SURVEY, 50)
    for layer in local.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(2.0 * layer.gamma)  # fresh weights draw next to nothing
    local.save(run / "local.keras")
    (run / "config.json").write_text(
        json.dumps(
            {
                "kind": "federated",
                "acquisition": SURVEY.to_dict(),
                "companding": companding.to_dict(),
                "budget": {"batch": 64},
            }
        )
    )
    (run / "metrics.json").write_text('{"step": 1270}')
    assert training_of(run) == "1,270 steps of 64 in its last run"
    prepare(folder, GATHERS, SURVEY, COMPANDING, find_trained([run]))
    parts = [GATHERS[0][:, :, list(group)] for group in SURVEY.device_receivers]
    encode = device_encoder("federated", folder)
    drawn = central_decoder("federated", folder)({d: encode(part) for d, part in enumerate(parts) if d != 3})
    expected = network(
        {
            "parts": np.stack([compand(part, companding, 14) for part in parts])[None],
            "mask": np.array([[1, 1, 1, 0, 1]], "f"),
        }
    )
    assert np.ptp(drawn) > 0.01
    assert np.abs(drawn - np.asarray(expected)[0, ..., 0]).max() < 2e-3, "float16 maps"


def test_what_is_no_run_of_a_baseline_is_refused(tmp_path):
    with pytest.raises(SchemeError, match="nowhere: not a run of `epic train`"):
        find_trained([tmp_path / "nowhere"])
    (tmp_path / "config.json").write_text('{"kind": "epic"}')
    with pytest.raises(SchemeError, match="a run of epic; expected at most one of `epic train inversionnet`"):
        find_trained([tmp_path])
    (tmp_path / "config.json").write_text('{"kind": "inversionnet"}')
    with pytest.raises(SchemeError, match="a run of inversionnet; expected at most one"):
        find_trained([tmp_path, tmp_path])
    with pytest.raises(SchemeError, match="not a finished run; expected its metrics.json"):
        training_of(tmp_path)
    with pytest.raises(SchemeError, match="not a finished run; expected its inversionnet.keras"):
        prepare(tmp_path, GATHERS[:1], SURVEY, COMPANDING, find_trained([tmp_path]))
