"""The decoder as the centre runs it."""

import json

import keras
import numpy as np
import pytest
from small_survey import SURVEY

from firmware_py.protocol.rate import Rate
from models.inversion.decoder import (
    OOD_FILE,
    DecoderError,
    LatentFormat,
    calibrate_uncertainty,
    load_decoder,
    save_decoder,
)
from models.inversion.ood import measure_ood
from models.networks.fusion import DecoderConfig, build_decoder
from physics.normalise import normalise_velocity

WHOLE = [Rate(16, 8)] * 3


@pytest.fixture
def folder(tmp_path):
    keras.utils.set_random_seed(0)
    config = DecoderConfig(3, 16, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1)
    build_decoder(config).save(tmp_path / "decoder.keras")
    save_decoder(tmp_path / "decoder", tmp_path / "decoder.keras", LatentFormat("ab" * 8, 0.05, 3), SURVEY)
    return tmp_path / "decoder"


def latents(seed=0):
    return np.random.default_rng(seed).integers(-128, 128, (3, 16)).astype(np.int8)


def test_maps_are_in_metres_per_second_within_the_surveys_bounds(folder):
    decoder = load_decoder(folder)
    assert (decoder.n_devices, decoder.latent, decoder.model_hash) == (3, 16, "ab" * 8)
    velocity, uncertainty = decoder.decode(latents(), np.ones(3, bool))
    assert velocity.shape == uncertainty.shape == SURVEY.map_shape
    assert 1500 <= velocity.min() <= velocity.max() <= 4500
    assert uncertainty.min() > 0


def test_int8_latents_are_dequantised_with_the_encoders_scale(folder):
    decoder = load_decoder(folder)
    floats = (latents().astype(np.float32) - 3) * 0.05
    velocity, uncertainty = decoder.decode_float(floats[None], np.ones((1, 3)))
    once = decoder.decode(latents(), np.ones(3, bool))
    np.testing.assert_allclose(velocity[0], once[0], atol=0.5)
    np.testing.assert_allclose(uncertainty[0], once[1], rtol=1e-3)


def test_maps_are_those_of_the_network(folder):
    decoder = load_decoder(folder)
    network = keras.models.load_model(folder / "decoder.keras", compile=False)
    floats = np.random.default_rng(2).normal(size=(2, 3, 16)).astype(np.float32)
    mask = np.array([[1, 1, 1], [0, 1, 0]], np.float32)
    positions = np.repeat(SURVEY.device_positions()[None].astype(np.float32), 2, axis=0)
    expected = network({"latents": floats, "positions": positions, "mask": mask})
    velocity, uncertainty = decoder.decode_float(floats, mask)
    inside = np.clip(np.asarray(expected["velocity"])[..., 0], -1, 1)
    np.testing.assert_allclose(normalise_velocity(velocity[:, 0], SURVEY), inside, atol=1e-5)
    np.testing.assert_allclose(
        uncertainty[:, 0], 1500 * np.exp(np.asarray(expected["log_scale"])[..., 0]), rtol=1e-4
    )


def test_a_map_does_not_depend_on_what_is_decoded_with_it(folder):
    decoder = load_decoder(folder)
    many = np.stack([latents(seed) for seed in range(5)])
    present = np.ones((5, 3), bool)
    present[0, 1] = False
    maps = decoder.decode_batch(many, present)
    for row in range(5):
        alone = decoder.decode(many[row], present[row])
        np.testing.assert_array_equal(maps[0][row], alone[0])
        np.testing.assert_array_equal(maps[1][row], alone[1])


def test_uncertainty_is_calibrated_by_samples_that_were_not_learnt_from(folder):
    decoder = load_decoder(folder)
    rng = np.random.default_rng(1)
    floats = rng.normal(size=(80, 3, 16)).astype(np.float32)
    velocity, before = decoder.decode_float(floats, np.ones((80, 3)))
    # Every cell is wrong by 45 m/s, one way or the other.
    maps = normalise_velocity(velocity[:, 0], SURVEY) + rng.choice([-0.03, 0.03], size=(80, 20, 20))
    assert calibrate_uncertainty(decoder, floats[:20], maps[:20]) == 1.0, "of so few nothing is concluded"
    assert "uncertainty_factor" not in json.loads((folder / "decoder.json").read_text())
    factor = calibrate_uncertainty(decoder, floats, maps)
    again, after = load_decoder(folder).decode_float(floats, np.ones((80, 3)))
    np.testing.assert_array_equal(again, velocity)
    np.testing.assert_allclose(after, before * factor, rtol=1e-3)
    np.testing.assert_array_equal(decoder.decode_float(floats, np.ones((80, 3)))[1], after)
    assert calibrate_uncertainty(decoder, floats, maps) == pytest.approx(1.0, abs=1e-3), "twice is once"
    assert after.mean() == pytest.approx(45.0, rel=0.01)


def test_uncertainty_is_calibrated_by_every_sample(folder):
    """Samples come family by family, so the last ones are the whole of a family's validation set."""
    decoder = load_decoder(folder)
    floats = np.random.default_rng(2).normal(size=(70, 3, 16)).astype(np.float32)
    velocity, before = decoder.decode_float(floats, np.ones((70, 3)))
    maps = normalise_velocity(velocity[:, 0], SURVEY)
    maps[-6:] += 0.3
    factor = calibrate_uncertainty(decoder, floats, maps)
    assert factor * before.mean() == pytest.approx(450.0 * 6 / 70, rel=1e-3)


def test_a_decoder_knows_what_is_like_its_training(folder):
    """Where the release holds it; a model from before says nothing, and still decodes."""
    assert load_decoder(folder).ood_score(latents(), np.ones(3, bool), WHOLE) is None
    codes = np.stack([latents(seed) for seed in range(200)])
    measure_ood((codes.astype(np.float32) - 3) * 0.05, (codes[:50] - 3.0) * 0.05).save(folder / OOD_FILE)
    decoder = load_decoder(folder)
    score, limit = decoder.ood_score(latents(999), np.ones(3, bool), WHOLE)
    assert 0.5 < score < limit
    assert decoder.ood_score(np.full((3, 16), 127, np.int8), np.ones(3, bool), WHOLE)[0] > limit
    (folder / OOD_FILE).write_bytes(b"half")
    with pytest.raises(DecoderError, match="copy the whole folder again"):
        load_decoder(folder)


@pytest.mark.parametrize("present", [[1, 0, 0], [0, 1, 1], [1, 1, 0]])
def test_any_subset_decodes_and_absent_latents_do_not_matter(folder, present):
    decoder = load_decoder(folder)
    present = np.array(present, bool)
    changed = latents()
    changed[~present] = 77
    np.testing.assert_allclose(
        decoder.decode(latents(), present)[0], decoder.decode(changed, present)[0], atol=0.5
    )


def test_what_cannot_be_decoded_is_said(folder):
    decoder = load_decoder(folder)
    with pytest.raises(DecoderError, match="at least one present"):
        decoder.decode(latents(), np.zeros(3, bool))
    with pytest.raises(DecoderError, match=r"expected int8 latents \(3, 16\), got float64 \(3, 16\)"):
        decoder.decode(latents().astype(float), np.ones(3, bool))
    with pytest.raises(DecoderError, match=r"got int8 \(2, 16\)"):
        decoder.decode(latents()[:2], np.ones(3, bool))


def test_a_damaged_or_foreign_folder_is_refused(folder, tmp_path):
    with pytest.raises(DecoderError, match="not found; expected a decoder folder"):
        load_decoder(tmp_path / "nowhere")
    weights = folder / "decoder.keras"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DecoderError, match=r"SHA-256 is .* the file is damaged or from another model"):
        load_decoder(folder)
    about = folder / "decoder.json"
    about.write_text(json.dumps({"format": "epic-decoder/1"}))
    with pytest.raises(DecoderError, match="not a decoder description"):
        load_decoder(folder)
