"""The shipped gathers and their codec."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physics.acquisition import Acquisition
from physics.families import FAMILIES, generate_map
from testbed.samples import Sample, SamplesError, load_samples, pack_gather, unpack_gather, write_samples


def smooth(seed, shape=(2, 400, 5), scale=1.0):
    """Wavelets at random times: band-limited, as a gather is."""
    rng = np.random.default_rng(seed)
    time = np.arange(shape[1])[None, :, None]
    gather = np.zeros(shape)
    for _ in range(5):
        b = ((time - rng.uniform(0, shape[1], (shape[0], 1, shape[2]))) * 15e-3 * np.pi) ** 2
        gather += rng.normal(size=(shape[0], 1, shape[2])) * (1 - 2 * b) * np.exp(-b)
    return (scale * gather).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_a_gather_comes_back_within_half_a_step(seed, scale):
    gather = smooth(seed, scale=scale)
    packed, step = pack_gather(gather)
    back = unpack_gather(packed, step, gather.shape)
    assert np.abs(back - gather).max() <= 0.51 * step + 1e-6 * np.abs(gather).max()
    assert 20 * np.log10((back - gather).std() / np.abs(gather).max()) < -95


def test_silence_packs_too():
    packed, step = pack_gather(np.zeros((1, 10, 2), np.float32))
    assert not unpack_gather(packed, step, (1, 10, 2)).any()


def test_a_rough_gather_is_refused_rather_than_damaged():
    rough = np.tile(np.array([1.0, -1.0], np.float32), 50)[None, :, None]
    with pytest.raises(SamplesError, match="too rough"):
        pack_gather(rough)


def test_the_shipped_samples_are_two_of_each_family():
    samples = load_samples()
    assert sorted(sample.family for sample in samples) == sorted(FAMILIES * 2)
    assert [sample.family for sample in samples[:10]] == [sample.family for sample in samples[10:]]
    for sample in samples:
        assert sample.gather.shape == Acquisition.openfwi().gather_shape
        assert sample.map_mps.shape == (70, 70)
        assert np.isfinite(sample.gather).all()


def test_the_shipped_maps_are_the_held_out_seeds():
    for number, sample in enumerate(load_samples()):
        drawn = generate_map(sample.family, 2000, number // 10, Acquisition.openfwi())
        np.testing.assert_array_equal(sample.map_mps, drawn[0])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "samples.npz"
    with pytest.raises(SamplesError, match="not found"):
        load_samples(path)
    gather = smooth(0)
    write_samples(path, [Sample("style_a", gather, np.ones((3, 4), np.float32))])
    (loaded,) = load_samples(path)
    assert loaded.family == "style_a"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SamplesError, match="not a whole sample file"):
        load_samples(path)
