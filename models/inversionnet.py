"""InversionNet, the centralised baseline, as published with OpenFWI.

Wu & Lin, "InversionNet", IEEE Trans. Comput. Imaging 2020, in the form of the OpenFWI benchmark (Deng et
al. 2022): every block is convolution, batch normalisation, LeakyReLU(0.2); 24,409,123 parameters for
the benchmark's survey (counting batch normalisation's scale and shift).
"""

from __future__ import annotations

import keras
from keras import layers, ops

from physics.acquisition import Acquisition

# (filters, kernel, stride, pad), kernels time x receiver.
_ENCODER = (
    (32, (7, 1), (2, 1), (3, 0)),
    (64, (3, 1), (2, 1), (1, 0)),
    (64, (3, 1), (1, 1), (1, 0)),
    (64, (3, 1), (2, 1), (1, 0)),
    (64, (3, 1), (1, 1), (1, 0)),
    (128, (3, 1), (2, 1), (1, 0)),
    (128, (3, 1), (1, 1), (1, 0)),
    (128, (3, 3), (2, 2), (1, 1)),
    (128, (3, 3), (1, 1), (1, 1)),
    (256, (3, 3), (2, 2), (1, 1)),
    (256, (3, 3), (1, 1), (1, 1)),
    (256, (3, 3), (2, 2), (1, 1)),
    (256, (3, 3), (1, 1), (1, 1)),
)
_BOTTLENECK = 512
# The first blocks have kernels of one receiver: a device can compute them from its own part alone.
SPLIT = 7
_DECODER = (256, 128, 64, 32)


def _finish(x, name: str, activation: bool = True):
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.LeakyReLU(0.2, name=f"{name}_relu")(x) if activation else x


def build_inversionnet(acquisition: Acquisition) -> keras.Model:
    """Keras model: gather ``(batch, n_time, n_receivers, n_sources)`` -> map ``(batch, nz, nx, 1)``.

    The input is the benchmark's log-transformed, min-max scaled gather; the output is the normalised
    map. Raises ``ValueError`` for a survey whose map does not fit the 80 x 80 that the decoder draws.
    """
    if acquisition.n_depth > 80 or acquisition.n_width > 80:
        raise ValueError(
            f"inversionnet: draws 80 x 80 cells and crops; got a map of {acquisition.n_depth} x "
            f"{acquisition.n_width}; use a survey of at most 80 x 80 cells"
        )
    gather = keras.Input((acquisition.n_time, acquisition.n_receivers, acquisition.n_sources), name="gather")
    return keras.Model(gather, _draw(_down(gather, 0, len(_ENCODER)), acquisition), name="inversionnet")


def build_device_half(acquisition: Acquisition) -> keras.Model:
    """The blocks that look along time only, for one device: ``(batch, n_time, receivers, n_sources)`` ->
    ``(batch, n_time / 16, receivers, 128)``. Of a trained network, ``copy_weights`` brings the weights."""
    part = keras.Input(
        (acquisition.n_time, acquisition.max_device_receivers, acquisition.n_sources), name="part"
    )
    return keras.Model(part, _down(part, 0, SPLIT), name="inversionnet_device")


def build_central_half(acquisition: Acquisition) -> keras.Model:
    """What is left of the network after ``build_device_half``, the devices' outputs side by side."""
    n_time, channels = build_device_half(acquisition).output_shape[1::2]
    inner = keras.Input((n_time, acquisition.n_receivers, channels), name="inner")
    drawn = _draw(_down(inner, SPLIT, len(_ENCODER)), acquisition)
    return keras.Model(inner, drawn, name="inversionnet_central")


def copy_weights(whole: keras.Model, half: keras.Model) -> None:
    """Give ``half`` the weights of the layers of the same names in ``whole``."""
    for layer in half.layers:
        if layer.weights:
            layer.set_weights(whole.get_layer(layer.name).get_weights())


def _down(x, first: int, last: int):
    for i, (filters, kernel, stride, pad) in enumerate(_ENCODER[first:last], start=first):
        x = layers.ZeroPadding2D(pad, name=f"down{i}_pad")(x)
        x = _finish(layers.Conv2D(filters, kernel, stride, name=f"down{i}")(x), f"down{i}")
    return x


def _draw(x, acquisition: Acquisition):
    # What is left (8 x 9 for the benchmark) becomes one point.
    x = _finish(layers.Conv2D(_BOTTLENECK, x.shape[1:3], name="bottleneck")(x), "bottleneck")
    x = _finish(layers.Conv2DTranspose(_BOTTLENECK, 5, 2, name="up0")(x), "up0")
    x = _finish(layers.Conv2D(_BOTTLENECK, 3, padding="same", name="up0b")(x), "up0b")
    for i, filters in enumerate(_DECODER, start=1):
        # Keras' "same" with kernel 4 and stride 2 is PyTorch's padding 1.
        x = _finish(layers.Conv2DTranspose(filters, 4, 2, padding="same", name=f"up{i}")(x), f"up{i}")
        x = _finish(layers.Conv2D(filters, 3, padding="same", name=f"up{i}b")(x), f"up{i}b")
    top, left = (x.shape[1] - acquisition.n_depth) // 2, (x.shape[2] - acquisition.n_width) // 2
    bottom, right = x.shape[1] - acquisition.n_depth - top, x.shape[2] - acquisition.n_width - left
    x = layers.Cropping2D(((top, bottom), (left, right)), name="crop")(x)
    x = _finish(layers.Conv2D(1, 3, padding="same", name="out")(x), "out", activation=False)
    return ops.tanh(x)


def count_parameters(network: keras.Model) -> int:
    """Trainable parameters: PyTorch's count, which leaves out the running statistics."""
    return sum(int(w.size if hasattr(w, "size") else ops.size(w)) for w in network.trainable_weights)
