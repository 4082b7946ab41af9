"""Ordered drop-out: rates as devices send them, and a latent turned so that its first values matter most."""

import keras
import numpy as np
import pytest

from firmware_py.protocol.rate import Coding, Rate, pack
from models.networks.encoder import EncoderConfig, Stage, build_encoder
from models.networks.fusion import DecoderConfig, build_decoder
from models.networks.nested_latent import BITS, LOWER_RATE_SHARE, AsSent, draw_rates, nest_latent, whole
from models.networks.network import build_network
from physics.acquisition import Acquisition

LATENT = 16
ENCODER = EncoderConfig(20, 7, 2, LATENT, (Stage(8, (3, 3), (2, 2)),), bottleneck=4)
DECODER = DecoderConfig(3, LATENT, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1)
PARTS = np.random.default_rng(0).normal(scale=0.3, size=(300, 20, 7, 2)).astype(np.float32)


def test_half_of_the_samples_send_everything_and_the_rest_every_lower_rate():
    values, bits = draw_rates(4000, 5, 128, np.random.default_rng(0))
    rates = np.stack([values, bits], axis=-1)
    is_whole = (rates == (128, 8)).all(axis=(1, 2))
    assert is_whole.mean() == pytest.approx(1 - LOWER_RATE_SHARE, abs=0.03)
    lower = rates[~is_whole]
    assert {tuple(map(int, pair)) for pair in lower.reshape(-1, 2)} == {
        (count, width) for count in (128, 64, 32, 16) for width in BITS
    } - {(128, 8)}
    alike = (lower == lower[:, :1]).all(axis=(1, 2))
    assert alike.mean() == pytest.approx(0.5, abs=0.05), "of these, half are set alike on all devices"


@pytest.mark.parametrize("rate", [Rate(LATENT, 8), Rate(LATENT, 4), Rate(6, 8), Rate(6, 4)])
def test_latents_are_as_the_centre_reads_them(rate):
    """Against the codec, on latents that are int8 codes of the batch's range."""
    codes = np.random.default_rng(1).integers(-128, 128, (7, 2, LATENT)).astype(np.int8)
    codes[0, 0, :2] = -128, 127
    scale, zero_point = 0.03, -20
    coding = Coding(LATENT, zero_point, (rate,) if rate.values < LATENT else ())
    sent = np.array([[coding.unpack(pack(latent, rate)) for latent in devices] for devices in codes])
    values, bits = (np.full((7, 2), number, np.float32) for number in rate)
    got = AsSent()((codes.astype(np.float32) - zero_point) * scale, values, bits)
    np.testing.assert_allclose(got, (sent.astype(np.float32) - zero_point) * scale, atol=1e-4)


def test_gradients_reach_the_values_that_were_sent_alone():
    tf = pytest.importorskip("tensorflow", reason="gradients are taken with TensorFlow's tape")
    latents = tf.Variable(np.random.default_rng(2).normal(size=(1, 2, LATENT)).astype(np.float32))
    with tf.GradientTape() as tape:
        sent = AsSent()(latents, np.array([[4.0, LATENT]]), np.array([[4.0, 8.0]]))
        total = tf.reduce_sum(sent)
    gradient = np.asarray(tape.gradient(total, latents))
    np.testing.assert_array_equal(gradient[0, 0], [1.0] * 4 + [0.0] * (LATENT - 4))
    np.testing.assert_array_equal(gradient[0, 1], np.ones(LATENT))


@pytest.fixture
def networks():
    keras.utils.set_random_seed(0)
    return build_encoder(ENCODER), build_decoder(DECODER)


def test_a_turned_latent_draws_the_same_maps_and_begins_with_what_matters(networks):
    encoder, decoder = networks
    places = np.zeros((4, 3, 2), np.float32)

    def drawn():
        latents = np.asarray(encoder(PARTS[:12])).reshape(4, 3, LATENT)
        given = {"latents": latents, "positions": places, "mask": np.ones((4, 3), np.float32)}
        return np.asarray(decoder(given)["velocity"])

    def lost(count):
        """Share of the tokens' variance that is gone when the first ``count`` values alone arrive."""
        latents = np.asarray(encoder(PARTS))
        left = np.where(np.arange(LATENT) < count, latents, latents.mean(axis=0))
        sent, received = (np.asarray(decoder.get_layer("tokens")(some)) for some in (latents, left))
        return ((received - sent) ** 2).sum() / ((sent - sent.mean(axis=0)) ** 2).sum()

    before, lost_before = drawn(), lost(4)
    nest_latent(encoder, decoder, PARTS)
    np.testing.assert_allclose(drawn(), before, atol=1e-4)
    latents = np.asarray(encoder(PARTS))
    np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=1e-4 * latents.std())
    tokens = np.asarray(decoder.get_layer("tokens")(latents))
    variances = np.linalg.svd(tokens - tokens.mean(axis=0), compute_uv=False) ** 2
    for count in (1, 4, 8):
        least = variances[count:].sum() / variances.sum()
        assert lost(count) == pytest.approx(least, abs=1e-3), "no other order keeps more"
    assert lost(4) < lost_before


def test_the_network_takes_rates():
    survey = Acquisition.openfwi()
    encoder = EncoderConfig(20, 14, 5, LATENT, (Stage(8, (3, 3), (2, 2)),), bottleneck=4)
    decoder = DecoderConfig(5, LATENT, 70, 70, width=16, heads=2, self_layers=1, cross_layers=1)
    network, _, _ = build_network(survey, encoder, decoder, quantised=True, nested=True)
    rng = np.random.default_rng(3)
    parts = rng.normal(size=(2, 5, 20, 14, 5)).astype(np.float32)
    given = {"parts": parts, "mask": np.ones((2, 5), np.float32)}

    def drawn(values, bits):
        return np.asarray(network({**given, "values": values, "bits": bits}))

    full = drawn(*whole(2, 5, LATENT))
    for values, bits in ((2, 8), (LATENT, 4)):
        lower = drawn(np.full((2, 5), values, np.float32), np.full((2, 5), bits, np.float32))
        assert np.abs(full - lower).max() > 1e-4
