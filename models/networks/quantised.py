"""Quantisation-aware training: the device encoder with simulated int8 rounding.

The encoder is computed as the converted model computes it on a device. Batch normalisation is folded into the kernels.
Kernels have 255 symmetric steps per output channel. Every tensor between operators has 256 steps of its range.
Gradients pass straight through the rounding. The weights are those of the plain float encoder, which the run saves.
Conversion is unchanged.
"""

from __future__ import annotations

import keras
from keras import layers, ops

from models.errors import TrainingError

KERNEL_STEPS = 127
TENSOR_STEPS = 255


@keras.saving.register_keras_serializable("epic")
class QuantisedEncoder(layers.Layer):
    """Wrap ``encoder`` with int8 rounding: ``(n, n_time, width, n_sources)`` -> ``(n, latent)``.

    A tensor's range is taken from the current batch, as the converter takes it from the representative set. Batches
    must therefore hold more than a few parts. The converter gives a branch of a sum the range of the sum, which is
    slightly wider. Batch normalisation keeps its statistics. All is computed in float32, since bfloat16 rounds as
    coarsely as int8.
    """

    def __init__(self, encoder: keras.Model, **kwargs) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.encoder = encoder
        self.built = True

    def call(self, parts):
        followers: dict[int, list[layers.Layer]] = {}
        for layer in self.encoder.layers[1:]:
            for tensor in _inputs(layer):
                followers.setdefault(id(tensor), []).append(layer)
        values = {id(self.encoder.input): rounded(parts)}
        for layer in self.encoder.layers[1:]:
            arguments = [values[id(tensor)] for tensor in _inputs(layer)]
            next_layer = (followers.get(id(layer.output)) or [None])[0]
            if isinstance(layer, layers.BatchNormalization):
                result = arguments[0]
            else:
                result = _operate(layer, arguments, next_layer)
            # A device fuses normalisation and ReLU into the preceding operator, without rounding in between.
            if not isinstance(next_layer, layers.BatchNormalization | layers.ReLU | layers.Flatten):
                result = rounded(result)
            values[id(layer.output)] = result
        return values[id(self.encoder.output)]

    def get_config(self) -> dict:
        return {**super().get_config(), "encoder": keras.saving.serialize_keras_object(self.encoder)}

    @classmethod
    def from_config(cls, config: dict) -> QuantisedEncoder:
        return cls(**{**config, "encoder": keras.saving.deserialize_keras_object(config["encoder"])})


def rounded(values):
    """Round ``values`` of any shape to 256 steps of their range, which includes zero; straight-through gradient."""
    low = ops.minimum(ops.min(values), 0.0)
    high = ops.maximum(ops.max(values), 0.0)
    step = ops.maximum((high - low) / TENSOR_STEPS, 1e-12)
    zero = ops.round(-low / step)
    codes = ops.clip(ops.round(values / step), -zero, TENSOR_STEPS - zero)
    return values + ops.stop_gradient(codes * step - values)


def rounded_kernel(kernel, channel_axis: int):
    """Round ``kernel`` to 255 symmetric steps per channel; straight-through gradient."""
    others = [axis for axis in range(len(kernel.shape)) if axis != channel_axis]
    peak = ops.max(ops.abs(kernel), axis=others, keepdims=True)
    step = ops.maximum(peak / KERNEL_STEPS, 1e-12)
    return kernel + ops.stop_gradient(ops.round(kernel / step) * step - kernel)


def _operate(layer: layers.Layer, arguments: list, next_layer: layers.Layer | None):
    """Apply ``layer`` to ``arguments`` with its kernel rounded, and normalised by ``next_layer`` if that is one."""
    # The layers are not called directly, because they compute in the training's precision.
    if isinstance(layer, layers.Add):
        return ops.add(*arguments)
    (values,) = arguments
    if isinstance(layer, layers.ReLU):
        return ops.relu(values)
    if isinstance(layer, layers.Flatten):
        return ops.reshape(values, (-1, layer.output.shape[-1]))
    if not isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense):
        raise TrainingError(
            f"quantised: {layer.name} is a {type(layer).__name__}, whose int8 form is not known"
        )
    kernel, bias = layer.kernel, layer.bias if layer.use_bias else 0.0
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    if isinstance(next_layer, layers.BatchNormalization):
        factor = next_layer.gamma / ops.sqrt(next_layer.moving_variance + next_layer.epsilon)
        kernel = kernel * (factor[:, None] if depthwise else factor)
        bias = next_layer.beta + (bias - next_layer.moving_mean) * factor
    kernel = rounded_kernel(kernel, -2 % len(kernel.shape) if depthwise else len(kernel.shape) - 1)
    if isinstance(layer, layers.Dense):
        result = ops.matmul(values, kernel)
    else:
        if depthwise and keras.backend.backend() == "jax":
            # XLA's gradient of a depthwise kernel is slow on a GPU. A full kernel, zero except on its diagonal, has a
            # fast gradient.
            depthwise, kernel = False, ops.eye(kernel.shape[2]) * kernel[:, :, None, :, 0]
        convolve = ops.depthwise_conv if depthwise else ops.conv
        result = convolve(values, kernel, strides=layer.strides, padding=layer.padding)
    result = result + bias
    return result if isinstance(next_layer, layers.BatchNormalization) else layer.activation(result)


def _inputs(layer: layers.Layer) -> list:
    return layer.input if isinstance(layer.input, list) else [layer.input]
