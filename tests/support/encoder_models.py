"""Encoders made from a released one by changing its flatbuffer, so that tests need no TensorFlow."""

import hashlib
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from firmware_py.micropython.epicnn import HASHED_FROM


def edited(model: bytes, edit: Callable[[Any], None]) -> bytes:
    """``model`` after ``edit`` of its parsed form."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    edit(parsed)
    builder = flatbuffers.Builder(len(model) + 4096)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def randomised(model: bytes, seed: int) -> bytes:
    """The same layers with random weights, biases, scales and zero points."""
    rng = np.random.default_rng(seed)

    def edit(parsed: Any) -> None:
        graph = parsed.subgraphs[0]
        for operator in graph.operators:
            for index in operator.inputs[1:]:
                tensor = graph.tensors[index]
                data = parsed.buffers[tensor.buffer].data
                if data is None or len(data) == 0 or tensor.quantization is None:
                    continue
                if tensor.type == schema.TensorType.INT8:
                    values = rng.integers(-127, 128, len(data)).astype(np.int8)
                    tensor.quantization.scale = list(rng.uniform(2e-4, 4e-3, len(tensor.quantization.scale)))
                elif tensor.quantization.scale is not None:
                    values = rng.integers(-20_000, 20_000, len(data) // 4).astype("<i4")
                else:
                    continue
                parsed.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
        activations = {
            int(index) for operator in graph.operators for index in (operator.inputs[0], *operator.outputs)
        }
        for index in activations:
            quantization = graph.tensors[index].quantization
            quantization.scale = [float(rng.uniform(0.01, 0.05))]
            quantization.zeroPoint = [int(rng.integers(-128, 40))]
        for operator in graph.operators:
            # A reshape keeps what it is given.
            if (
                len(operator.inputs) == 2
                and graph.tensors[operator.inputs[1]].type == schema.TensorType.INT32
            ):
                given, kept = (
                    graph.tensors[i].quantization for i in (operator.inputs[0], operator.outputs[0])
                )
                kept.scale, kept.zeroPoint = given.scale, given.zeroPoint

    return edited(model, edit)


def changed(compiled: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A compiled encoder after ``change`` of what its hash covers."""
    body = change(compiled[HASHED_FROM:])
    return compiled[: HASHED_FROM - 32] + hashlib.sha256(body).digest() + body
