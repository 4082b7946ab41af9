"""Rescale an encoder's layers so that their outputs have unit size; the maps stay as they are.

Quantised training keeps the batch normalisation as it is, and each of Muon's steps has a fixed size. Kernels therefore
grow in every session. Larger kernels change less with each step, so an encoder that is trained on and on learns ever
more slowly: the latents of one released model had grown to 5e6 an int8 step. A ReLU network can be rescaled without
changing what it computes, because ``relu(s x) = s relu(x)`` for s > 0.
"""

from __future__ import annotations

import keras
import numpy as np


def standardise(encoder: keras.Model, decoder: keras.Model, parts: np.ndarray) -> None:
    """Scale the layers of ``encoder`` to outputs with an RMS of 1 on ``parts``, and ``decoder``'s input to match.

    ``parts (n, n_time, width, n_sources)`` are companded training inputs. A residual block keeps the scale of the stage
    that it adds to.
    """
    outputs = {
        name: encoder.get_layer(_measured(encoder, name)).output
        for name in _kernel_layers(encoder)
        if not name.endswith("_point")
    }
    probe = keras.Model(encoder.input, outputs)
    sizes = {name: _size(values) for name, values in probe.predict(parts, batch_size=100, verbose=0).items()}
    stage = before = 1.0
    for name in _kernel_layers(encoder):
        after = stage if name.endswith("_point") else sizes[name]
        _rescale(encoder, name, before, after)
        before = after
        if not name.endswith("_depth"):
            stage = after
    first = decoder.get_layer("tokens" if "tokens" in {layer.name for layer in decoder.layers} else "dense0")
    first.kernel.assign(first.kernel * before)


def _kernel_layers(encoder: keras.Model) -> list[str]:
    """Return the names of the layers with kernels, in order."""
    kinds = keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense
    return [layer.name for layer in encoder.layers if isinstance(layer, kinds)]


def _measured(encoder: keras.Model, name: str) -> str:
    """Return the name of the layer whose output has the scale of the kernel layer ``name``."""
    return f"{name}_relu" if any(layer.name == f"{name}_relu" for layer in encoder.layers) else name


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1.0


def _rescale(encoder: keras.Model, name: str, before: float, after: float) -> None:
    """Rescale the kernel layer ``name``: its input is divided by ``before``, its output is to be by ``after``."""
    layer = encoder.get_layer(name)
    layer.kernel.assign(layer.kernel * (before / after))
    if layer.use_bias:
        layer.bias.assign(layer.bias / after)
        return
    norm = encoder.get_layer(f"{name}_norm")
    gamma, variance = np.array(norm.gamma), np.array(norm.moving_variance)
    norm.gamma.assign(gamma * np.sqrt((variance / after**2 + norm.epsilon) / (variance + norm.epsilon)))
    norm.moving_variance.assign(variance / after**2)
    norm.moving_mean.assign(norm.moving_mean / after)
    norm.beta.assign(norm.beta / after)
