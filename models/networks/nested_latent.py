"""Nested dropout: train one encoder whose latent decodes from its first values alone, so a device may send fewer.

In training, a share of the samples reaches the decoder at a reduced rate: the first half, quarter or eighth of the
values, in 8 or 4 bits, zeros for the rest (Rippel et al. 2014, arXiv 1402.0915). Before that, the latent of a trained
network is rotated so that the most important directions come first. The rotation does not change maps decoded from
whole latents.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from models.errors import TrainingError

# Share of samples at a reduced rate; most devices send the whole latent.
LOWER_RATE_SHARE = 0.5
# Divisors of the latent's length at the reduced rates.
DIVISORS = (1, 2, 4, 8)
BITS = (8, 4)


def prefixes(latent: int) -> tuple[int, ...]:
    """Return the allowed numbers of values to send, the whole latent first."""
    return tuple(latent // divisor for divisor in DIVISORS)


def prefix_rates(latent: int) -> tuple[tuple[int, int], ...]:
    """Return (values, bits) of each rate below the two that every latent has (``firmware_py.protocol.rate``).

    Of rates with equal payload length, only the one with the better map is listed (docs/decisions/0012).
    """
    return ((latent // 4, 8), (latent // 4, 4), (latent // 8, 4))


def lower_rates(latent: int) -> list[tuple[int, int]]:
    """Return (values, bits) of each reduced rate used in training."""
    return [(values, bits) for values in prefixes(latent) for bits in BITS][1:]


def whole(n: int, n_devices: int, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the full rate in the form of ``draw_rates``."""
    return np.full((n, n_devices), latent, np.float32), np.full((n, n_devices), BITS[0], np.float32)


def draw_rates(
    n: int, n_devices: int, latent: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the number of values sent and bits of each, both ``(n, n_devices)`` float32.

    Half of the samples at a reduced rate use one rate for all devices, as the centre sets it. The other half draw one
    rate per device.
    """
    lower = lower_rates(latent)
    values, bits = whole(n, n_devices, latent)
    for row in np.flatnonzero(rng.random(n) < LOWER_RATE_SHARE):
        count = 1 if rng.random() < 0.5 else n_devices
        values[row], bits[row] = np.array(lower, np.float32)[rng.integers(len(lower), size=count)].T
    return values, bits


@keras.saving.register_keras_serializable("epic")
class AsSent(layers.Layer):
    """Apply the devices' rates to latents, as the centre receives them.

    ``latents (batch, n_devices, latent)``, ``values`` and ``bits (batch, n_devices)`` -> ``(batch, n_devices,
    latent)``. At 4 bits, the upper half of the 8-bit code is kept and read as the middle of its interval
    (``firmware_py.protocol.rate``). The 8-bit range is that of the batch. Gradients pass straight through the rounding.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, latents, values, bits):
        low = ops.minimum(ops.min(latents), 0.0)
        step = ops.maximum((ops.maximum(ops.max(latents), 0.0) - low) / 255, 1e-12)
        codes = ops.round((latents - low) / step)
        coarse = low + step * (16.0 * ops.floor(codes / 16.0) + 8.0)
        is_coarse = ops.cast(bits < 8, "float32")[..., None]
        latents = latents + ops.stop_gradient(is_coarse * (coarse - latents))
        places = ops.arange(latents.shape[-1], dtype="float32")
        return latents * ops.cast(places < values[..., None], "float32")


def nest_latent(encoder: keras.Model, decoder: keras.Model, parts: np.ndarray) -> None:
    """Rotate the latent between ``encoder`` and ``decoder`` in place: most important directions first, mean zero.

    The directions are the principal components of the output of the tokens' linear layer over ``parts (n, n_time,
    width, n_sources)``. The layers on both sides are linear. Their product, and every map decoded from whole latents,
    is unchanged except for rounding.

    Each component is scaled to the square root of its standard deviation. Equal scaling would spend 8 bits on
    unimportant components. No scaling would leave one step for the last components.
    """
    last, first = encoder.get_layer("latent"), decoder.get_layer("tokens")
    if len(parts) < last.units:
        raise TrainingError(
            f"train: ordering a latent of {last.units} values takes as many parts, got {len(parts)}; give more data"
        )
    latents = encoder.predict(parts, batch_size=100, verbose=0).astype(np.float64)
    to_tokens, bias = (np.array(weight, np.float64) for weight in (first.kernel, first.bias))
    mean = latents.mean(axis=0)
    _, spread, directions = np.linalg.svd((latents - mean) @ to_tokens, full_matrices=False)
    spread = np.maximum(spread[: len(mean)] / np.sqrt(len(latents)), 1e-6 * spread[0])
    directions = directions[: len(mean)].T
    # Each component has standard deviation sqrt(spread), scaled to the previous range of the latents.
    scale = spread**-0.5
    turn = to_tokens @ directions * scale
    turned = (latents - mean) @ turn
    scale *= latents.std() / turned.std()
    turn = to_tokens @ directions * scale
    kernel, offset = (np.array(weight, np.float64) for weight in (last.kernel, last.bias))
    last.kernel.assign(kernel @ turn)
    last.bias.assign((offset - mean) @ turn)
    first.kernel.assign((directions / scale).T)
    first.bias.assign(bias + mean @ to_tokens)
