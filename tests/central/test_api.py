"""The Python interface: what a notebook does."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the central extra")

from scipy.stats import spearmanr

import epic
from central.errors import CentralError
from firmware_py.inference.companding import GatherError
from models.inversion.decoder import DecoderError
from models.released import ModelNotFoundError
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
    assert not result.out_of_distribution and result.flags == [] and result.notes == ()
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
    with pytest.raises(GatherError, match=r"expected an array \(5, 1000, 70\).*got \(1000, 70\)"):
        model.invert(np.zeros((1000, 70)))
    with pytest.raises(GatherError, match=r"expected an array.*got str; .*numpy.load"):
        model.invert("my-gather.npy")
    with pytest.raises(DecoderError, match="expected devices 0 to 4, got 7"):
        model.invert(load_samples()[0].gather, missing=[7])
    with pytest.raises(ModelNotFoundError, match="expected one of epic-base-256"):
        epic.load_model("epic-huge")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda gather: np.where(np.arange(70) < 24, gather, 0), "230 of 350 traces are silent"),
        (lambda gather: 0 * gather, "every sample is zero"),
        (lambda gather: gather / 200, "the model knows peaks of"),
        (lambda gather: -gather, "polarity looks reversed"),
    ],
    ids=["half a spread", "silence", "gain", "polarity"],
)
def test_a_gather_whose_map_will_be_wrong_has_a_note(model, change, note):
    (found,) = model.invert(change(load_samples()[0].gather)).notes
    assert note in found


def test_a_map_is_flagged_as_the_centre_flags_it(model):
    result = model.invert(load_samples()[0].gather)
    uncertain = replace(result, uncertainty_mps=np.full((70, 70), 400.0, np.float32))
    assert not uncertain.out_of_distribution, "the OOD score alone misses bad maps"
    assert [flag.split(":")[0] for flag in uncertain.flags] == ["uncertain"]
    unlike = replace(uncertain, ood_score=9.0)
    assert [flag.split(":")[0] for flag in unlike.flags] == ["uncertain", "unlike training"]


@pytest.fixture(scope="module")
def demo(model):
    """Of each of the demo's gathers: error in m/s and result, whole, of half a spread, and of a wrong gain."""
    changes = (
        lambda gather: gather,
        lambda gather: np.where(np.arange(70) < 24, gather, 0),
        lambda g: g / 200,
    )
    found = []
    for change in changes:
        results = [(sample, model.invert(change(sample.gather))) for sample in load_samples()]
        errors_mps = [np.abs(result.velocity_mps - sample.map_mps).mean() for sample, result in results]
        found.append((np.array(errors_mps), [result for _, result in results]))
    return found


def uncertainties_of(results):
    return np.array([result.uncertainty_mps.mean() for result in results])


def test_in_the_demo_the_uncertainty_tells_the_bad_maps_and_the_ood_score_does_not(demo):
    """What a map is flagged by first has to follow its error."""
    errors_mps, results = demo[0]
    by_uncertainty = spearmanr(errors_mps, uncertainties_of(results)).statistic
    by_score = spearmanr(errors_mps, [result.ood_score for result in results]).statistic
    assert by_uncertainty > 0.75 and by_uncertainty > by_score + 0.3
    assert uncertainties_of(results).argsort().argsort()[errors_mps.argmax()] >= len(results) - 3
    # A tenth of the range of velocities, beyond which a map is flagged.
    flagged = [any(flag.startswith("uncertain") for flag in result.flags) for result in results]
    assert flagged == (errors_mps > 300.0).tolist()


def test_in_the_demo_half_a_spread_is_seen_by_uncertainty_and_ood_score(demo):
    """Its map had an error of 727 m/s and stated 115."""
    (_, whole), (errors_mps, half) = demo[:2]
    assert (uncertainties_of(half) > uncertainties_of(whole)).mean() > 0.9
    assert uncertainties_of(half).mean() > 0.9 * errors_mps.mean()
    assert spearmanr(errors_mps, uncertainties_of(half)).statistic > 0.7
    scores = np.array([[result.ood_score for result in results] for results in (whole, half)])
    assert (scores[1] > scores[0]).all() and np.median(scores[1]) > 0.9 * half[0].ood_limit
    assert all("230 of 350 traces are silent" in result.notes[0] for result in half)


def test_in_the_demo_a_wrong_gain_is_flagged_and_noted(demo):
    for result in demo[2][1]:
        assert [flag.split(":")[0] for flag in result.flags] == ["uncertain", "unlike training"]
        assert "the model knows peaks of" in result.notes[0]


@pytest.mark.parametrize("name", ["map.png", "map.txt", "map"])
def test_netcdf_is_not_written_under_another_suffix(model, tmp_path, name):
    result = model.invert(load_samples()[0].gather)
    with pytest.raises(CentralError, match="suffix is not one of netcdf"):
        result.to_netcdf(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
