"""Rebuild the float network of an int8 encoder from its .tflite file.

A released model holds its encoder as int8 only. The float network uses the dequantised kernels and biases, without
rounding between operators. It has a gradient, and its latents differ from the device's by about one step.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from models.errors import ModelsError

# Operators of this project's encoders, and the order of TFLite's kernel axes that Keras expects. TFLite stores (out,
# height, width, in), (1, height, width, channels) and (out, in).
KERNEL_AXES: dict[str, tuple[int, ...] | None] = {
    "RESHAPE": None,
    "ADD": None,
    "CONV_2D": (1, 2, 3, 0),
    "DEPTHWISE_CONV_2D": (1, 2, 3, 0),
    "FULLY_CONNECTED": (1, 0),
}


class FloatEncoderError(ModelsError, ValueError):
    """A .tflite file cannot be converted to a float network."""


def float_encoder(model: bytes) -> keras.Model:
    """Build a Keras network from an int8 .tflite file: companded ``(n, time, width, sources)`` -> ``(n, latent)``.

    Raises:
        FloatEncoderError: The file has an operator that this project's encoders do not use.
    """
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    activations = {
        schema.ActivationFunctionType.NONE: None,
        schema.ActivationFunctionType.RELU: "relu",
        schema.ActivationFunctionType.RELU6: "relu6",
    }

    def weights_of(inputs: list[int], order: tuple[int, ...]) -> list[np.ndarray]:
        """Return the kernel, its axes in Keras' ``order``, and the bias; the file omits a bias of zeros."""
        there = graph.tensors[inputs[1]]
        kernel = dequantised(there, parsed.buffers)
        if inputs[2] < 0:
            bias = np.zeros(kernel.shape[there.quantization.quantizedDimension], np.float32)
        else:
            bias = dequantised(graph.tensors[inputs[2]], parsed.buffers)
        return [kernel.transpose(order), bias]

    (first,) = graph.inputs
    entry = keras.Input(tuple(int(side) for side in graph.tensors[first].shape[1:]), name="part")
    values = {int(first): entry}
    for place, operator in enumerate(graph.operators):
        code = parsed.operatorCodes[operator.opcodeIndex]
        kind = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
        options, inputs = operator.builtinOptions, [int(index) for index in operator.inputs]
        shape = tuple(int(side) for side in graph.tensors[operator.outputs[0]].shape[1:])
        if kind not in KERNEL_AXES:
            raise FloatEncoderError(
                f"encoder: operator {place} is {kind}, whose float form is not known; "
                "convert a network of models/networks/encoder.py"
            )
        axes = KERNEL_AXES[kind]
        weights = weights_of(inputs, axes) if axes else []
        layer = _layer(kind, options, shape, weights)
        arguments = [values[index] for index in inputs if index in values]
        value = layer(arguments if kind == "ADD" else arguments[0])
        layer.set_weights(weights)
        fused = activations.get(getattr(options, "fusedActivationFunction", 0), "none known")
        values[int(operator.outputs[0])] = layers.Activation(fused)(value) if fused else value
    return keras.Model(entry, values[int(graph.outputs[0])], name="float_encoder")


def _layer(kind: str, options: Any, shape: tuple[int, ...], weights: list[np.ndarray]) -> layers.Layer:
    """Return the Keras layer of an operator whose result has ``shape``."""
    from ai_edge_litert import schema_py_generated as schema

    if kind == "RESHAPE":
        return layers.Reshape(shape)
    if kind == "ADD":
        return layers.Add()
    if kind == "FULLY_CONNECTED":
        return layers.Dense(weights[0].shape[-1])
    common = {
        "strides": (options.strideH, options.strideW),
        "padding": "same" if options.padding == schema.Padding.SAME else "valid",
    }
    if kind == "CONV_2D":
        return layers.Conv2D(weights[0].shape[-1], weights[0].shape[:2], **common)
    return layers.DepthwiseConv2D(weights[0].shape[:2], **common)


def dequantised(tensor: Any, buffers: list) -> np.ndarray:
    """Return the real values of a constant int8 or int32 tensor of a parsed .tflite file."""
    from ai_edge_litert import schema_py_generated as schema

    scale = np.asarray(tensor.quantization.scale, np.float32)
    spread = [1] * len(tensor.shape)
    spread[tensor.quantization.quantizedDimension] = len(scale)
    kind = np.int32 if tensor.type == schema.TensorType.INT32 else np.int8
    codes = np.frombuffer(bytes(buffers[tensor.buffer].data), kind).reshape(tensor.shape)
    return codes.astype(np.float32) * scale.reshape(spread)
