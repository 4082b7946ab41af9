"""The networks: shapes, operators, what the mask and the positions do, the baseline's size."""

import keras
import numpy as np
import pytest

from models.evaluation.comparison import count_macs
from models.networks.encoder import PRESETS, EncoderConfig, Stage, build_encoder, encoder_preset
from models.networks.fusion import DecoderConfig, build_decoder, fourier_features
from models.networks.inversionnet import LAYOUTS, build_inversionnet, count_parameters
from models.networks.network import build_network, map_loss, map_ssim
from physics.acquisition import Acquisition
from physics.metrics import ssim

SMALL = Acquisition.openfwi()
N_DEVICES = SMALL.n_devices


@pytest.fixture(scope="module")
def decoder():
    keras.utils.set_random_seed(1)
    config = DecoderConfig(N_DEVICES, 16, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1)
    return build_decoder(config)


def draw(decoder, latents, mask, positions=None):
    positions = SMALL.device_positions() if positions is None else positions
    inputs = {"latents": latents[None], "positions": positions[None], "mask": np.asarray(mask, "f")[None]}
    return np.asarray(decoder(inputs)["velocity"])


@pytest.mark.parametrize("name", PRESETS)
def test_an_encoder_has_only_layers_that_every_target_takes_in_int8(name):
    network = build_encoder(encoder_preset(name, SMALL, 10))
    allowed = {
        "InputLayer",
        "Conv2D",
        "DepthwiseConv2D",
        "BatchNormalization",
        "ReLU",
        "Add",
        "Flatten",
        "Dense",
    }
    assert {type(layer).__name__ for layer in network.layers} <= allowed
    assert all(max(layer.strides) <= 3 for layer in network.layers if isinstance(layer, keras.layers.Conv2D))
    assert network.output_shape == (None, PRESETS[name][0])


def test_absent_devices_do_not_touch_the_map(decoder):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(N_DEVICES, 16)).astype("f")
    mask = np.ones(N_DEVICES)
    mask[2] = 0
    changed = latents.copy()
    changed[2] = 100.0
    np.testing.assert_allclose(draw(decoder, latents, mask), draw(decoder, changed, mask), atol=1e-5)
    assert np.abs(draw(decoder, latents, np.ones(N_DEVICES)) - draw(decoder, latents, mask)).max() > 1e-4


def test_the_map_depends_on_where_devices_stand(decoder):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(N_DEVICES, 16)).astype("f")
    everyone = np.ones(N_DEVICES)
    swapped = SMALL.device_positions()[::-1].copy()
    assert np.abs(draw(decoder, latents, everyone) - draw(decoder, latents, everyone, swapped)).max() > 1e-4


def test_devices_may_be_listed_in_any_order(decoder):
    """A device is known by its position: permuting devices with their positions changes nothing."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(N_DEVICES, 16)).astype("f")
    order = rng.permutation(N_DEVICES)
    positions = SMALL.device_positions()
    np.testing.assert_allclose(
        draw(decoder, latents, np.ones(N_DEVICES)),
        draw(decoder, latents[order], np.ones(N_DEVICES), positions[order]),
        atol=1e-4,
    )


@pytest.mark.parametrize("part", ["attention", "positions"])
def test_a_decoder_without_a_part_takes_the_same_inputs_and_ignores_positions(part):
    keras.utils.set_random_seed(1)
    sizes = {"width": 16, "heads": 2, "self_layers": 1, "cross_layers": 1}
    decoder = build_decoder(DecoderConfig(N_DEVICES, 16, 20, 20, **sizes, **{part: False}))
    latents = np.random.default_rng(0).normal(size=(N_DEVICES, 16)).astype("f")
    everyone = np.ones(N_DEVICES)
    whole = draw(decoder, latents, everyone)
    elsewhere = SMALL.device_positions()[::-1].copy()
    np.testing.assert_array_equal(whole, draw(decoder, latents, everyone, elsewhere))
    # Without attention a device is known by its place in the list, without positions not at all.
    swapped = np.abs(draw(decoder, latents[::-1].copy(), everyone) - whole).max()
    assert swapped > 1e-4 if part == "attention" else swapped < 1e-4
    absent = np.array([1, 1, 0, 1, 1])
    changed = latents.copy()
    changed[2] = 100.0
    np.testing.assert_allclose(draw(decoder, latents, absent), draw(decoder, changed, absent), atol=1e-5)


def test_decoder_refuses_a_map_its_patches_do_not_tile():
    with pytest.raises(ValueError, match="n_width to be a multiple of patch=5, got 72"):
        DecoderConfig(5, 128, 70, 72)


def test_fourier_features_tell_positions_apart():
    features = fourier_features(np.linspace(0, 1, 71)[:, None])
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 0.05


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As published.
    [("inversionnet", 24_409_123), ("bigfwi-m", 28_883_779)],
)
def test_central_networks_have_the_published_size(name, parameters):
    network = build_inversionnet(SMALL, LAYOUTS[name])
    assert count_parameters(network) == parameters
    assert network.output_shape == (None, *SMALL.map_shape[1:], 1)


def test_work_on_a_device_is_that_of_its_convolutions_and_dense_layers():
    part = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(part)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D((5, 3), padding="same")(x)
    x = keras.layers.Conv2DTranspose(3, 4, 2, padding="same")(x)
    x = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    expected = 4 * (9 * 2 * 8) + 4 * (15 * 8) + 4 * (16 * 3 * 8) + 48 * 10
    assert count_macs(keras.Model(part, x)) == expected


def test_network_feeds_each_device_through_the_same_encoder():
    keras.utils.set_random_seed(2)
    encoder = EncoderConfig(20, 14, 5, latent=16, stages=(Stage(8, (3, 3), (2, 2)),), bottleneck=4)
    config = DecoderConfig(N_DEVICES, 16, 70, 70, width=16, heads=2, self_layers=1, cross_layers=1)
    network, encode, decode = build_network(SMALL, encoder, config)
    parts = np.random.default_rng(0).normal(size=(2, N_DEVICES, 20, 14, 5)).astype("f")
    mask = np.ones((2, N_DEVICES), "f")
    whole = np.asarray(network({"parts": parts, "mask": mask}))
    latents = np.asarray(encode(parts.reshape(-1, 20, 14, 5))).reshape(2, N_DEVICES, 16)
    positions = np.repeat(SMALL.device_positions()[None], 2, axis=0)
    alone = decode({"latents": latents, "positions": positions, "mask": mask})
    np.testing.assert_allclose(whole[..., :1], np.asarray(alone["velocity"]), atol=1e-4)


def test_loss_is_least_where_the_scale_equals_the_mean_error():
    """The uncertainty is honest: the likelihood is best at b = E|error|."""
    rng = np.random.default_rng(0)
    truth = rng.laplace(scale=0.2, size=(1, 64, 64, 1)).astype("f")
    losses = {
        b: float(map_loss(truth, np.concatenate([0 * truth, 0 * truth + np.log(b)], -1).astype("f")))
        for b in (0.05, 0.1, 0.2, 0.4, 0.8)
    }
    assert min(losses, key=losses.get) == 0.2


def test_loss_counts_what_is_missing_to_the_benchmarks_ssim():
    """Of two maps as far from the truth, the one of the same structure is the better."""
    rng = np.random.default_rng(0)
    truth = np.tile(np.repeat([-0.6, 0.1, 0.5], [20, 20, 30])[None, :, None, None], (2, 1, 70, 1)).astype("f")
    shifted, speckled = truth + 0.05, truth + 0.05 * np.sign(rng.standard_normal(truth.shape)).astype("f")
    for drawn in (shifted, speckled):
        assert float(map_ssim(truth, drawn)) == pytest.approx(ssim(drawn[..., 0], truth[..., 0]), abs=1e-4)
    log_scale = np.full_like(truth, -3.0)
    of_shifted, of_speckled = (
        float(map_loss(truth, np.concatenate([drawn, log_scale], -1))) for drawn in (shifted, speckled)
    )
    assert of_speckled > of_shifted + 0.02
