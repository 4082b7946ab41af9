"""Ordered drop-out: one encoder whose latent decodes from its first values alone, so that a device may send fewer.

In training a share of the samples reaches the decoder as a device at a lower rate sends it: the first half, quarter
or eighth of the latent's values, all of them in 8 or in 4 bits, and zero in the place of the rest (nested drop-out,
Rippel et al. 2014, arXiv 1402.0915). A trained network is first turned so that its latent begins with what matters
most to the decoder, which changes nothing of what it draws from the whole.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from models.errors import TrainingError

# The rest sends everything: the whole latent is what most devices are set to.
LOWER_RATE_SHARE = 0.5
# Of the latent's values, one in so many is sent.
DIVISORS = (1, 2, 4, 8)
BITS = (8, 4)


def prefixes(latent: int) -> tuple[int, ...]:
    """How many of a latent's values may be sent, the whole first."""
    return tuple(latent // divisor for divisor in DIVISORS)


def prefix_rates(latent: int) -> tuple[tuple[int, int], ...]:
    """Values and bits of each rate below the two that every latent has (``firmware_py.protocol.rate``): of
    those of a length, what draws the better map (docs/decisions/0012)."""
    return ((latent // 4, 8), (latent // 4, 4), (latent // 8, 4))


def lower_rates(latent: int) -> list[tuple[int, int]]:
    """Values and bits of each rate that training draws below the whole latent."""
    return [(values, bits) for values in prefixes(latent) for bits in BITS][1:]


def whole(n: int, n_devices: int, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """As ``draw_rates``, everything sent."""
    return np.full((n, n_devices), latent, np.float32), np.full((n, n_devices), BITS[0], np.float32)


def draw_rates(
    n: int, n_devices: int, latent: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Values sent and bits of each, both ``(n, n_devices)`` float32.

    Of the samples at a lower rate, half have one for all devices, as the centre sets it, and half one for each.
    """
    lower = lower_rates(latent)
    values, bits = whole(n, n_devices, latent)
    for row in np.flatnonzero(rng.random(n) < LOWER_RATE_SHARE):
        count = 1 if rng.random() < 0.5 else n_devices
        values[row], bits[row] = np.array(lower, np.float32)[rng.integers(len(lower), size=count)].T
    return values, bits


@keras.saving.register_keras_serializable("epic")
class AsSent(layers.Layer):
    """Latents as the centre reads them of devices at their rates: ``latents (batch, n_devices, latent)``, ``values``
    and ``bits (batch, n_devices)`` -> ``(batch, n_devices, latent)``.

    Four bits are the upper ones of the 8 that a value takes in the range of the batch, read as the middle of what
    they leave open (``firmware_py.protocol.rate``); gradients pass the rounding as if it were not there.
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


def order_latent(encoder: keras.Model, decoder: keras.Model, parts: np.ndarray) -> None:
    """Turn the latent between ``encoder`` and ``decoder`` in place, most important directions first, mean at zero.

    Important is what moves the decoder's tokens most over ``parts (n, n_time, width, n_sources)``: the principal
    components of the tokens' linear layer's output. The layers on both sides are linear, so their product, and with
    it every map drawn from whole latents, stays the same but for rounding. A component's share of the range is the
    square root of its part in the tokens: between all alike, which spends 8 bits on what hardly matters, and as it
    falls, which leaves the last values one step.
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
    # Each component then has the standard deviation sqrt(spread), scaled to the range that latents had before.
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
