"""A run that begins with another's weights begins where that one ended, also when it is larger."""

import re
from dataclasses import replace

import keras
import numpy as np
import pytest

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import Companding, compand, dequantise
from firmware_py.inference.encoder import Encoder
from models.errors import TrainingError
from models.networks.encoder import EncoderConfig, Stage, build_encoder, encoder_preset
from models.networks.fusion import DecoderConfig, build_decoder
from models.training.standard_scale import standardise
from models.training.warm_start import Origin, begin_with, fits_decoder, grown, read_origin
from physics.acquisition import Acquisition
from testbed.run import find_model
from testbed.samples import load_samples

pytestmark = pytest.mark.slow

PARTS = np.random.default_rng(0).normal(scale=0.3, size=(6, 20, 7, 2)).astype(np.float32)


def encoder_config(filters=8, latent=16, residuals=0):
    return EncoderConfig(20, 7, 2, latent, (Stage(filters, (3, 3), (2, 2), residuals),), bottleneck=4)


def origin_of(encoder, decoder):
    def named(network):
        prefix = re.compile(r"^(device_encoder|fusion_decoder)(_\d+)?/")
        return {prefix.sub("", v.path): np.array(v) for v in network.weights}

    return Origin(named(encoder), named(decoder), Companding(20.0, 7.6, 10), folded=False)


def test_residual_blocks_begin_as_the_identity():
    keras.utils.set_random_seed(0)
    plain = build_encoder(encoder_config())
    decoder = build_decoder(DecoderConfig(3, 16, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1))
    deeper = build_encoder(encoder_config(residuals=2))
    begin_with(origin_of(plain, decoder), deeper, decoder, PARTS)
    np.testing.assert_allclose(deeper(PARTS), plain(PARTS), atol=1e-5)


def test_a_wider_network_begins_with_the_narrower_ones_latent():
    keras.utils.set_random_seed(0)
    narrow = build_encoder(encoder_config())
    decoder = build_decoder(DecoderConfig(3, 24, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1))
    wide = build_encoder(encoder_config(filters=12, latent=24))
    begin_with(origin_of(narrow, decoder), wide, decoder, PARTS)
    np.testing.assert_allclose(np.asarray(wide(PARTS))[:, :16], np.asarray(narrow(PARTS)), atol=1e-5)


def test_layers_that_have_grown_are_scaled_back_and_the_maps_stay():
    """Kernels of continued training, 30 times too large in each layer: the size goes, the function does not."""
    keras.utils.set_random_seed(0)
    encoder = build_encoder(encoder_config(residuals=2))
    decoder = build_decoder(DecoderConfig(3, 16, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1))
    rng = np.random.default_rng(0)
    for layer in encoder.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(20, 40, layer.gamma.shape))
            layer.beta.assign(rng.normal(size=layer.beta.shape))
            layer.moving_variance.assign(rng.uniform(0.01, 2, layer.gamma.shape))
            layer.moving_mean.assign(rng.normal(size=layer.beta.shape))
    positions, mask = np.zeros((2, 3, 2), np.float32), np.ones((2, 3), np.float32)

    def draw():
        latents = np.asarray(encoder(PARTS))
        event = {"latents": latents.reshape(2, 3, 16), "positions": positions, "mask": mask}
        return latents, np.asarray(decoder(event)["velocity"])

    latents, maps = draw()
    assert np.abs(latents).max() > 1e6
    standardise(encoder, decoder, PARTS)
    latents, scaled = draw()
    np.testing.assert_allclose(scaled, maps, atol=1e-4 * np.abs(maps).max())
    assert np.sqrt(np.mean(latents**2)) == pytest.approx(1.0, rel=1e-3)


def test_grown_keeps_the_old_corner_and_lets_nothing_new_into_it():
    old, fresh = np.ones((3, 3, 2, 4)), np.full((3, 3, 5, 6), 7.0)
    result = grown(old, fresh)
    assert (result[..., :2, :4] == 1).all()
    assert (result[..., 2:, :4] == 0).all()
    assert (result[..., 4:] == 7).all()


def test_a_released_model_is_read_back_from_its_int8_file():
    """Folded normalisation, int8 kernels: the float network made of them encodes as the int8 one does."""
    model = find_model(None)
    bundle = load_bundle(model.bundle)
    origin = read_origin(model.bundle.parent)
    assert origin.folded and origin.companding == bundle.companding
    acquisition = Acquisition.openfwi()
    config = encoder_preset("small", acquisition, bundle.companding.thin)
    decoder = build_decoder(DecoderConfig(5, config.latent, 70, 70))
    encoder = build_encoder(config)
    samples = [sample.gather[:, :, :14] for sample in load_samples()]
    parts = np.stack([compand(part, bundle.companding, 14) for part in samples])
    begin_with(origin, encoder, decoder, parts)
    floats = np.asarray(encoder(parts))
    codes = np.stack([Encoder(bundle).encode_recording(part) for part in samples])
    latents = dequantise(codes, bundle.output.scale, bundle.output.zero_point)
    noise = np.mean((floats - latents) ** 2) / np.mean((latents - latents.mean(axis=0)) ** 2)
    # Against the differences between parts of one device. A single kernel that is not read back leaves 0.1 or more.
    assert noise < 0.01, "20 dB at least: what int8 rounds off and no more"


def test_a_released_encoder_whose_kernel_finds_no_layer_is_refused():
    origin = read_origin(find_model(None).bundle.parent)
    config = encoder_preset("small", Acquisition.openfwi(), origin.companding.thin)
    unknown = replace(origin, encoder={**origin.encoder, "conv9/kernel": np.zeros((1, 1, 2, 2), np.float32)})
    with pytest.raises(TrainingError, match="no layer for conv9/kernel"):
        begin_with(unknown, build_encoder(config), None, np.zeros((1, 100, 14, 5), np.float32))


def test_what_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="expected a run folder .* or a released model"):
        read_origin(tmp_path)


def test_a_deeper_decoder_draws_what_the_one_it_begins_with_draws():
    keras.utils.set_random_seed(0)
    encoder = build_encoder(encoder_config())
    size = {"width": 16, "heads": 2, "self_layers": 1, "cross_layers": 1, "refine_layers": 1}
    plain = build_decoder(DecoderConfig(3, 16, 20, 20, **size))
    deep = build_decoder(
        DecoderConfig(
            3,
            16,
            20,
            20,
            **{**size, "self_layers": 2, "cross_layers": 3, "refine_layers": 2, "pixel_layers": 2},
        )
    )
    origin = origin_of(encoder, plain)
    assert fits_decoder(origin, deep)
    begin_with(origin, encoder, deep, PARTS)
    rng = np.random.default_rng(1)
    event = {
        "latents": rng.normal(size=(2, 3, 16)).astype(np.float32),
        "positions": rng.uniform(size=(2, 3, 2)).astype(np.float32),
        "mask": np.array([[1, 1, 1], [1, 0, 1]], np.float32),
    }
    for name in ("velocity", "log_scale"):
        np.testing.assert_allclose(deep(event)[name], plain(event)[name], atol=1e-5)
    wider = build_decoder(DecoderConfig(3, 16, 20, 20, **{**size, "width": 32}))
    assert not fits_decoder(origin, wider)
    assert not fits_decoder(origin_of(encoder, deep), plain)
    # One without attention has no queries, and is begun with as ever.
    flat = DecoderConfig(3, 16, 20, 20, width=16, attention=False)
    assert fits_decoder(origin_of(encoder, build_decoder(flat)), build_decoder(flat))
    assert not fits_decoder(origin, build_decoder(flat))
