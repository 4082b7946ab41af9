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
    ordered: bool = False,
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """``(network, device encoder, fusion decoder)`` that share their weights.

    The network takes ``parts (batch, n_devices, n_time, width, n_sources)`` and ``mask (batch,
    n_devices)`` and returns ``(batch, nz, nx, 2)``: normalised velocity and log scale. ``quantised`` puts the
    encoder's int8 rounding into it, ``ordered`` what devices at lower rates leave out: it then takes ``values``
    and ``bits (batch, n_devices)`` as well. Neither has a weight of its own (``models.networks.quantised``,
    ``models.networks.nested_latent``).
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
    if ordered:
        rate = {name: keras.Input((n,), name=name) for name in ("values", "bits")}
        latents = AsSent(name="as_sent")(latents, **rate)
        inputs |= rate
    places = DevicePositions(acquisition.device_positions().tolist(), name="places")(mask)
    drawn = decode({"latents": latents, "positions": places, "mask": mask})
    both = ops.concatenate([drawn["velocity"], drawn["log_scale"]], axis=-1)
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


# Weight of the uncertainty's likelihood beside the map's L1: small, so that it does not steer the map.
UNCERTAINTY_WEIGHT = 0.05
# Weight of what is missing to a structural similarity of 1: L1 alone leaves speckle where a layer is even.
STRUCTURE_WEIGHT = 0.3


@keras.saving.register_keras_serializable("epic")
def map_loss(truth, drawn):
    """L1 of the map, its lack of structural similarity, and the Laplace likelihood of its residual under the
    predicted scale.

    ``truth (batch, nz, nx, 1)``, ``drawn (batch, nz, nx, 2)``. The residual is held constant in the
    likelihood, so the scale learns from the map's errors without trading them for a larger scale.
    """
    residual = ops.abs(ops.subtract(truth, drawn[..., :1]))
    log_scale = ops.clip(drawn[..., 1:], -7.0, 2.0)
    likelihood = ops.stop_gradient(residual) * ops.exp(-log_scale) + log_scale
    unlike = 1.0 - map_ssim(truth, drawn)
    return ops.mean(residual) + UNCERTAINTY_WEIGHT * ops.mean(likelihood) + STRUCTURE_WEIGHT * unlike


def map_ssim(truth, drawn):
    """``physics.metrics.ssim`` of the maps in ``drawn``, shapes as for ``map_loss``, with a gradient."""
    along_z, along_x = (ops.convert_to_tensor(blur_matrix(n), "float32") for n in truth.shape[1:3])
    predicted, true = (ops.cast(maps[..., 0], "float32") for maps in (drawn, truth))
    with _whole_products():
        return ops.mean(similarity(predicted, true, along_z, along_x))


def _whole_products() -> contextlib.AbstractContextManager:
    """Matrix products in all of float32. A GPU's default has 11 bits (TF32), and a variance is the small difference
    of two of them: a similarity of 1 becomes anything from -1400 to 1500 (docs/decisions/0014)."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


@keras.saving.register_keras_serializable("epic")
def map_mae(truth, drawn):
    """Normalised MAE of the map (1 is 1500 m/s)."""
    return ops.mean(ops.abs(ops.subtract(truth, drawn[..., :1])))
