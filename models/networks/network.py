"""The whole EPIC network as one trainable model: shared encoder on every device, then the fusion."""

from __future__ import annotations

import contextlib

import keras
from keras import layers, ops

from models.networks.encoder import EncoderConfig, build_encoder
from models.networks.fusion import DecoderConfig, build_decoder
from models.networks.nested_latent import AsSent
from models.networks.quantised import QuantisedEncoder
from physics.acquisition import Acquisition
from physics.metrics import blur_matrix, similarity


def build_network(
    acquisition: Acquisition,
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    quantised: bool = False,
    nested: bool = False,
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Build ``(network, device encoder, fusion decoder)`` with shared weights.

    The network takes ``parts (batch, n_devices, n_time, width, n_sources)`` and ``mask (batch, n_devices)``. It returns
    ``(batch, nz, nx, 2)``: normalised velocity and log scale.

    Args:
        quantised: Include the encoder's int8 rounding (``models.networks.quantised``).
        nested: Include reduced rates (``models.networks.nested_latent``). The network then also takes ``values`` and
            ``bits (batch, n_devices)``.

    Neither option adds weights.
    """
    encode = build_encoder(encoder)
    decode = build_decoder(decoder)
    n = acquisition.n_devices
    part_shape = (encoder.n_time, encoder.n_receivers, encoder.n_sources)
    parts = keras.Input((n, *part_shape), name="parts")
    mask = keras.Input((n,), name="mask")
    on_device = QuantisedEncoder(encode, name="device_encoder") if quantised else encode
    latents = ops.reshape(on_device(ops.reshape(parts, (-1, *part_shape))), (-1, n, encoder.latent))
    inputs = {"parts": parts, "mask": mask}
    if nested:
        rate = {name: keras.Input((n,), name=name) for name in ("values", "bits")}
        latents = AsSent(name="as_sent")(latents, **rate)
        inputs |= rate
    places = DevicePositions(acquisition.device_positions().tolist(), name="places")(mask)
    predicted = decode({"latents": latents, "positions": places, "mask": mask})
    both = ops.concatenate([predicted["velocity"], predicted["log_scale"]], axis=-1)
    return keras.Model(inputs, both, name="epic"), encode, decode


@keras.saving.register_keras_serializable("epic")
class DevicePositions(layers.Layer):
    """The survey's device positions for every sample of a batch: ``(batch, n)`` -> ``(batch, n, 2)``."""

    def __init__(self, positions: list[list[float]], **kwargs) -> None:
        super().__init__(**kwargs)
        self.positions = positions

    def call(self, like):
        table = ops.convert_to_tensor(self.positions, "float32")
        return ops.broadcast_to(table[None], (ops.shape(like)[0], *table.shape))

    def get_config(self) -> dict:
        return {**super().get_config(), "positions": self.positions}


# Weight of the uncertainty likelihood relative to the map's L1; small, so that it does not steer the map.
UNCERTAINTY_WEIGHT = 0.05
# Weight of 1 - SSIM. With L1 alone, uniform layers keep speckle.
STRUCTURE_WEIGHT = 0.3


@keras.saving.register_keras_serializable("epic")
def map_loss(truth, predicted):
    """Return L1 of the map, plus weighted 1 - SSIM, plus the weighted Laplace likelihood of the residual.

    ``truth (batch, nz, nx, 1)``, ``predicted (batch, nz, nx, 2)``. The residual is held constant in the likelihood, so
    the scale fits the map's errors and the map gains nothing from a larger scale.
    """
    residual = ops.abs(ops.subtract(truth, predicted[..., :1]))
    log_scale = ops.clip(predicted[..., 1:], -7.0, 2.0)
    likelihood = ops.stop_gradient(residual) * ops.exp(-log_scale) + log_scale
    unlike = 1.0 - map_ssim(truth, predicted)
    return ops.mean(residual) + UNCERTAINTY_WEIGHT * ops.mean(likelihood) + STRUCTURE_WEIGHT * unlike


def map_ssim(truth, predicted):
    """Return the differentiable ``physics.metrics.ssim`` of the maps in ``predicted``, shapes as in ``map_loss``."""
    along_z, along_x = (ops.convert_to_tensor(blur_matrix(n), "float32") for n in truth.shape[1:3])
    predicted, true = (ops.cast(maps[..., 0], "float32") for maps in (predicted, truth))
    with _whole_products():
        return ops.mean(similarity(predicted, true, along_z, along_x))


def _whole_products() -> contextlib.AbstractContextManager:
    """Compute matrix products in full float32.

    A GPU's default (TF32) has 11 bits. A variance is a small difference of two products, so TF32 turns a similarity of
    1 into values from -1400 to 1500 (docs/decisions/0014).
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


@keras.saving.register_keras_serializable("epic")
def map_mae(truth, predicted):
    """Normalised MAE of the map (1 is 1500 m/s)."""
    return ops.mean(ops.abs(ops.subtract(truth, predicted[..., :1])))
