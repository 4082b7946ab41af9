"""The Python interface: what a notebook does."""

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the central extra")

import epic
from central.api import ModelNotFoundError
from firmware_py.inference.companding import GatherError
from testbed.samples import load_samples


@pytest.fixture(scope="module")
def model():
    return epic.load_model("epic-small-128")


def test_a_gather_becomes_a_map_with_uncertainty(model, tmp_path):
    import xarray

    sample = load_samples()[0]
    result = model.invert(sample.gather)
    assert result.velocity_mps.shape == result.uncertainty_mps.shape == sample.map_mps.shape
    mean_error_mps = np.abs(result.velocity_mps - sample.map_mps).mean()
    assert mean_error_mps < np.abs(sample.map_mps - sample.map_mps.mean()).mean()
    assert result.latents.shape == (5, 128) and result.present.all()
    assert not result.out_of_distribution
    result.to_netcdf(tmp_path / "map.nc")
    with xarray.open_dataset(tmp_path / "map.nc") as written:
        np.testing.assert_array_equal(written["velocity"], result.velocity_mps)
        assert float(written["depth"][0]) == 5.0
    result.plot(sample.map_mps).savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_a_missing_device_changes_the_map_and_not_its_shape(model):
    gather = load_samples()[0].gather
    whole, partial = model.invert(gather), model.invert(gather, missing=[2])
    assert partial.velocity_mps.shape == whole.velocity_mps.shape
    assert partial.present.tolist() == [True, True, False, True, True]
    assert not np.array_equal(partial.velocity_mps, whole.velocity_mps)


def test_noise_is_out_of_distribution(model):
    noise = 5 * np.random.default_rng(0).standard_normal(model.acquisition.gather_shape)
    assert model.invert(noise).out_of_distribution


def test_wrong_input_is_named(model):
    with pytest.raises(GatherError, match=r"expected \(5, 1000, 70\).*got \(1000, 70\)"):
        model.invert(np.zeros((1000, 70)))
    with pytest.raises(ModelNotFoundError, match="expected one of epic-base-256"):
        epic.load_model("epic-huge")
