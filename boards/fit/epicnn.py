"""Compile an int8 encoder for stock MicroPython: ``encoder.tflite`` to ``encoder.epicnn``.

The file is a header, a record of int32 for every layer, then the layers' blocks in the order in which they are run,
and golden vectors with the latents of LiteRT's reference kernels. A block of a convolution holds N output channels:
N x (bias, multiplier high, multiplier low, shift) int32, then the weights ``[ky][kx][ci][N]`` as bytes q + 128. A
depthwise convolution is one block of all channels, without ``ci``; ADD's block is two tables of 256 int32.
``firmware_py/micropython/model_viper.py`` runs it, ``kernels.py`` beside it says why it is laid out so.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from boards.errors import BoardsError
from boards.fit.graph import read_graph
from boards.quiet import hold_output
from firmware_py.micropython import kernels
from firmware_py.micropython.epicnn import (
    ADDITION,
    CONVOLUTION,
    DEPTHWISE,
    FIELDS,
    HASHED_FROM,
    HEADER,
    MAGIC,
)

BLOCK_CHANNELS = (24, 32, 40)
# Limits of the kernels, which have 32-bit integers and no 64-bit products (``kernels.py``).
MAX_SUM = 1 << 28
MAX_SHIFT = 29
WORD_BYTES, FACTORS = 4, 4
ADD_SHIFT = 20


class EpicnnError(BoardsError, ValueError):
    """The encoder holds something that the executor for stock MicroPython cannot run."""


@dataclass
class _Buffer:
    """A tensor of activations: bytes, the layers between which it lives, and where in the arena it lies."""

    size: int
    born: int
    dies: int = 0
    offset: int = -1


@dataclass(frozen=True)
class _Geometry:
    """Shapes (height, width, channels) of a convolution; stride, and padding at the top and left, in pixels."""

    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def fields(self) -> dict[str, int]:
        """Return the fields of a layer's record."""
        return {
            "in_height": self.in_shape[0],
            "in_width": self.in_shape[1],
            "in_channels": self.in_shape[2],
            "out_height": self.out_shape[0],
            "out_width": self.out_shape[1],
            "out_channels": self.out_shape[2],
            "stride_height": self.stride[0],
            "stride_width": self.stride[1],
            "pad_top": self.padding[0],
            "pad_left": self.padding[1],
        }


@dataclass(frozen=True)
class Memory:
    """Bytes of heap that the executor's buffers take."""

    arena: int
    weights: int
    sums: int
    factors: int

    @property
    def total(self) -> int:
        return self.arena + self.weights + self.sums + self.factors


def read_memory(compiled: bytes) -> Memory:
    """The buffers of a compiled encoder."""
    fields = struct.unpack_from(HEADER, compiled)
    return Memory(*fields[4:8])


def reference_latents(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """Latents of LiteRT's reference kernels: ``(n, time, width, sources)`` int8 -> ``(n, latent)`` int8."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with hold_output():
        interpreter = Interpreter(
            model_content=model, num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
        interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    latents = []
    for values in inputs:
        interpreter.set_tensor(source, values[None])
        interpreter.invoke()
        latents.append(interpreter.get_tensor(target)[0].copy())
    return np.stack(latents)


def compile_encoder(model: bytes, inputs: np.ndarray | None = None) -> bytes:
    """``encoder.tflite`` as a file for ``ViperModel``.

    Args:
        model: content of the .tflite file.
        inputs: golden vectors, int8 ``(n, time, width, sources)``; without, one of noise.

    Raises:
        EpicnnError: an operator is unknown, or does not fit 32-bit arithmetic.
    """
    graph = read_graph(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise EpicnnError(
            f"expected one input and one output, got {len(graph.inputs)} and {len(graph.outputs)}"
        )
    if inputs is None:
        inputs = np.random.default_rng(0).integers(-128, 128, (1, *graph.inputs[0].shape[1:])).astype(np.int8)
    compiler = _Compiler(model)
    compiler.run()
    return compiler.pack(hashlib.sha256(model).digest()[:8], inputs, reference_latents(model, inputs))


class _Compiler:
    """Records and blocks of a model's layers."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._parsed = schema.ModelT.InitFromPackedBuf(model, 0)
        self._graph = self._parsed.subgraphs[0]
        self._names = {v: k for k, v in vars(schema.BuiltinOperator).items() if k.isupper()}
        self._activations = {v: k for k, v in vars(schema.ActivationFunctionType).items() if k.isupper()}
        self._buffers: dict[int, _Buffer] = {}
        self._layers: list[dict[str, int]] = []
        self._blocks: list[bytes] = []
        self._operands: list[tuple[_Buffer, _Buffer, _Buffer]] = []
        self._weights_bytes = self._sums_bytes = self._factors_bytes = 0

    def run(self) -> None:
        self._input, self._output = int(self._graph.inputs[0]), int(self._graph.outputs[0])
        self._born(self._input)
        for number, operator in enumerate(self._graph.operators):
            code = self._parsed.operatorCodes[operator.opcodeIndex]
            name = self._names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "unknown")
            where = f"operator {number}, {name}"
            if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                self._convolution(where, name, operator)
            elif name == "ADD":
                self._add(where, operator)
            elif name == "RESHAPE":
                # The same bytes under another shape.
                self._buffers[int(operator.outputs[0])] = self._buffers[int(operator.inputs[0])]
            else:
                raise EpicnnError(
                    f"{where}: not known to the executor for stock MicroPython; expected CONV_2D, DEPTHWISE_CONV_2D, "
                    "FULLY_CONNECTED, ADD or RESHAPE"
                )
        self._buffers[self._output].dies = len(self._layers)

    def pack(self, model_hash: bytes, inputs: np.ndarray, latents: np.ndarray) -> bytes:
        """The whole file."""
        arena_bytes = self._place()
        for layer, (source, other, target) in zip(self._layers, self._operands, strict=True):
            layer |= {"source": source.offset, "other": other.offset, "target": target.offset}
        records = b"".join(
            np.array([layer.get(name, 0) for name in FIELDS], "<i4").tobytes() for layer in self._layers
        )
        vectors = b"".join(
            values.tobytes() + latent.tobytes() for values, latent in zip(inputs, latents, strict=True)
        )
        body = records + b"".join(self._blocks) + vectors
        header = struct.pack(
            HEADER,
            MAGIC,
            bytes(32),
            model_hash,
            len(self._layers),
            arena_bytes,
            self._weights_bytes,
            self._sums_bytes,
            self._factors_bytes,
            self._buffers[self._input].offset,
            self._buffers[self._input].size,
            self._buffers[self._output].offset,
            self._buffers[self._output].size,
            len(inputs),
        )
        digest = hashlib.sha256(header[HASHED_FROM:] + body).digest()
        return header[: HASHED_FROM - len(digest)] + digest + header[HASHED_FROM:] + body

    def _convolution(self, where: str, name: str, operator: Any) -> None:
        source, kernel, bias = (int(index) for index in (*operator.inputs, -1)[:3])
        target = int(operator.outputs[0])
        weights = self._values(where, kernel, np.int8)
        depthwise = name == "DEPTHWISE_CONV_2D"
        if name == "FULLY_CONNECTED":
            # A convolution of one pixel.
            weights = weights[:, None, None, :]
            geometry = _Geometry((1, 1, weights.shape[-1]), (1, 1, len(weights)))
        else:
            geometry = self._geometry(where, operator, weights.shape[1:3])
        in_channels, channels = geometry.in_shape[2], geometry.out_shape[2]
        if depthwise and (channels % 8 or in_channels != channels):
            raise EpicnnError(
                f"{where}: expected a multiple of 8 channels and multiplier 1, got {in_channels} to {channels}"
            )
        # (ky, kx, ci, channels); a depthwise kernel has no ci.
        weights = weights[0] if depthwise else weights.transpose(1, 2, 3, 0)
        biases = self._values(where, bias, np.int32) if bias >= 0 else np.zeros(channels, np.int32)
        in_scale, in_zero = self._quantisation(where, source)
        out_scale, out_zero = self._quantisation(where, target)
        factors = self._factors(where, kernel, channels, in_scale, out_scale)
        self._check_sums(where, weights.reshape(-1, channels), biases, in_zero)
        layer = {
            "operator": DEPTHWISE if depthwise else CONVOLUTION,
            **geometry.fields(),
            "kernel_height": weights.shape[0],
            "kernel_width": weights.shape[1],
            "in_zero": in_zero + 128,
            # LiteRT rounds a fully connected layer's sums once, all others twice.
            "rounds_once": int(name == "FULLY_CONNECTED"),
            **self._limits(where, operator.builtinOptions, out_scale, out_zero),
        }
        sizes = (channels,) if depthwise else _block_sizes(channels)
        for n in BLOCK_CHANNELS:
            layer[f"blocks_{n}"] = 0 if depthwise else sizes.count(n)
        start = 0
        for n in sizes:
            self._block(
                weights[..., start : start + n],
                biases[start : start + n],
                factors[start : start + n],
                n,
                geometry.out_shape[1],
            )
            start += n
        self._append(layer, source, source, target)

    def _block(
        self, weights: np.ndarray, biases: np.ndarray, factors: np.ndarray, n: int, out_width: int
    ) -> None:
        count = len(biases)
        table = np.zeros((n, FACTORS), "<i4")
        table[:, 0] = kernels.BIAS_OFFSET
        table[:count, 0] += biases
        table[:count, 1:] = factors
        codes = np.full((*weights.shape[:-1], n), 128, np.uint8)
        codes[..., :count] = weights.astype(np.int16) + 128
        self._blocks += [table.tobytes(), codes.tobytes()]
        self._factors_bytes = max(self._factors_bytes, table.nbytes)
        self._weights_bytes = max(self._weights_bytes, codes.size)
        self._sums_bytes = max(self._sums_bytes, WORD_BYTES * out_width * (n + 1))

    def _add(self, where: str, operator: Any) -> None:
        one, other = (int(index) for index in operator.inputs)
        target = int(operator.outputs[0])
        if not self._shape(one) == self._shape(other) == self._shape(target):
            raise EpicnnError(
                f"{where}: expected inputs of one shape, got {self._shape(one)} and {self._shape(other)}"
            )
        out_scale, out_zero = self._quantisation(where, target)
        inputs = [self._quantisation(where, index) for index in (one, other)]
        twice_largest = 2.0 * max(scale for scale, _ in inputs)
        tables = np.concatenate(
            [
                _scaled_by(
                    (np.arange(-128, 128, dtype=np.int64) - zero) << ADD_SHIFT,
                    *_multiplier(where, scale / twice_largest),
                )
                for scale, zero in inputs
            ]
        )
        multiplier, shift = _multiplier(where, twice_largest / ((1 << ADD_SHIFT) * out_scale))
        height, width, channels = self._shape(target)
        layer = {
            "operator": ADDITION,
            "out_height": height,
            "out_width": width,
            "out_channels": channels,
            "multiplier_high": multiplier >> 16,
            "multiplier_low": multiplier & 0xFFFF,
            "shift": shift,
            **self._limits(where, operator.builtinOptions, out_scale, out_zero),
        }
        block = (tables + kernels.BIAS_OFFSET).astype("<i4").tobytes()
        self._blocks.append(block)
        self._factors_bytes = max(self._factors_bytes, len(block))
        self._append(layer, one, other, target)

    def _append(self, layer: dict[str, int], one: int, other: int, target: int) -> None:
        """Note a layer and that it is the last so far to read its inputs."""
        number = len(self._layers)
        sources = (self._buffers[one], self._buffers[other])
        for buffer in sources:
            buffer.dies = number
        self._born(target)
        self._layers.append(layer)
        self._operands.append((*sources, self._buffers[target]))

    def _born(self, index: int) -> None:
        shape = [int(side) for side in self._graph.tensors[index].shape]
        self._buffers[index] = _Buffer(math.prod(shape), len(self._layers))

    def _place(self) -> int:
        """Give every buffer its offset in the arena; returns the arena's bytes.

        ADD writes each byte after it has read those that it is made of, so its result takes the place of an input
        that nobody needs any more.
        """
        buffers = list({id(buffer): buffer for buffer in self._buffers.values()}.values())
        merged: dict[int, _Buffer] = {}
        for layer, (one, other, target) in zip(self._layers, self._operands, strict=True):
            if layer["operator"] == ADDITION:
                for source in (other, one):
                    if source.dies == target.born and source is not self._buffers[self._input]:
                        merged[id(target)] = merged.get(id(source), source)
                        break
        lives = {id(b): [b.born, b.dies] for b in buffers if id(b) not in merged}
        for buffer in buffers:
            if id(buffer) in merged:
                lives[id(merged[id(buffer)])][1] = buffer.dies
        placed: list[_Buffer] = []
        for buffer in sorted((b for b in buffers if id(b) not in merged), key=lambda b: -b.size):
            born, dies = lives[id(buffer)]
            taken = sorted(
                (other.offset, other.offset + other.size)
                for other in placed
                if lives[id(other)][0] <= dies and born <= lives[id(other)][1]
            )
            offset = 0
            for begin, end in taken:
                if offset + buffer.size <= begin:
                    break
                offset = max(offset, end)
            buffer.offset = offset
            placed.append(buffer)
        for buffer in buffers:
            if id(buffer) in merged:
                buffer.offset = merged[id(buffer)].offset
        return _aligned(max(b.offset + b.size for b in placed))

    def _factors(
        self, where: str, kernel: int, channels: int, in_scale: float, out_scale: float
    ) -> np.ndarray:
        """``(channels, 3)``: multiplier high and low, shift."""
        scales = np.asarray(self._graph.tensors[kernel].quantization.scale, np.float32)
        if len(scales) != channels:
            raise EpicnnError(
                f"{where}: expected a weight scale for each of {channels} channels, got {len(scales)}; "
                "quantise per channel"
            )
        rows = []
        for scale in scales.astype(np.float64):
            multiplier, shift = _multiplier(where, in_scale * scale / out_scale)
            rows.append((multiplier >> 16, multiplier & 0xFFFF, shift))
        return np.array(rows, np.int64)

    def _check_sums(self, where: str, weights: np.ndarray, biases: np.ndarray, in_zero: int) -> None:
        """Refuse a channel whose sum could leave 28 bits; ``weights (taps, channels)``."""
        largest = max(127 - in_zero, in_zero + 128)
        most = np.abs(weights.astype(np.int64)).sum(axis=0) * largest + np.abs(biases.astype(np.int64))
        if most.max() >= MAX_SUM:
            raise EpicnnError(
                f"{where}: expected sums below 2^28, they may reach {most.max():,}; take a smaller encoder"
            )
        # The kernels add up q + 128 of the weights, and take 128 times the sum of the values off afterwards.
        if len(weights) * 255 * largest >= kernels.SUM_OFFSET:
            raise EpicnnError(
                f"{where}: expected at most {kernels.SUM_OFFSET // (255 * largest):,} values in a sum, got "
                f"{len(weights):,}; take a smaller encoder"
            )

    def _limits(self, where: str, options: Any, scale: float, zero: int) -> dict[str, int]:
        """Zero point and clamp of the output as bytes q + 128."""
        activation = self._activations[int(options.fusedActivationFunction)]
        low, high = -128, 127
        if activation in ("RELU", "RELU6"):
            low = max(low, zero)
        if activation == "RELU6":
            high = min(high, zero + math.floor(6.0 / scale + 0.5))
        if activation not in ("NONE", "RELU", "RELU6"):
            raise EpicnnError(
                f"{where}: expected a fused activation of NONE, RELU or RELU6, got {activation}"
            )
        return {"out_zero": zero + 128, "low": low + 128, "high": high + 128}

    def _geometry(self, where: str, operator: Any, kernel: tuple[int, int]) -> _Geometry:
        """Return the geometry of CONV_2D or DEPTHWISE_CONV_2D; ``kernel`` is its height and width."""
        options = operator.builtinOptions
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            raise EpicnnError(
                f"{where}: expected dilation 1, got {options.dilationHFactor} x {options.dilationWFactor}"
            )
        in_shape, out_shape = self._shape(int(operator.inputs[0])), self._shape(int(operator.outputs[0]))
        stride = (int(options.strideH), int(options.strideW))
        if int(options.padding) != self._schema.Padding.SAME:
            return _Geometry(in_shape, out_shape, stride)
        top, left = (
            max((out - 1) * step + side - length, 0) // 2
            for out, step, side, length in zip(out_shape, stride, kernel, in_shape, strict=False)
        )
        return _Geometry(in_shape, out_shape, stride, (top, left))

    def _shape(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels of an activation; a vector is one pixel."""
        batch, *shape = (int(side) for side in self._graph.tensors[index].shape)
        assert batch == 1
        height, width, channels = (1, 1, *shape)[-3:]
        return height, width, channels

    def _values(self, where: str, index: int, dtype: Any) -> np.ndarray:
        tensor = self._graph.tensors[index]
        data = self._parsed.buffers[tensor.buffer].data
        if data is None or len(data) != math.prod(tensor.shape) * np.dtype(dtype).itemsize:
            raise EpicnnError(
                f"{where}: expected constant {np.dtype(dtype).name} weights and biases; quantise to int8"
            )
        return np.frombuffer(bytes(data), dtype).reshape(tensor.shape)

    def _quantisation(self, where: str, index: int) -> tuple[float, int]:
        tensor = self._graph.tensors[index]
        if tensor.type != self._schema.TensorType.INT8 or len(tensor.quantization.scale) != 1:
            raise EpicnnError(f"{where}: expected int8 activations of one scale; quantise to int8")
        return float(np.float32(tensor.quantization.scale[0])), int(tensor.quantization.zeroPoint[0])


def _block_sizes(channels: int) -> list[int]:
    """Blocks that hold ``channels``, with as few idle channels as can be, then as few blocks."""
    best: dict[int, list[int]] = {0: []}
    top = max(channels + max(BLOCK_CHANNELS), 1)
    for total in range(1, top):
        before = [best[total - n] + [n] for n in BLOCK_CHANNELS if total - n in best]
        if before:
            best[total] = min(before, key=lambda sizes: (len(sizes), max(sizes)))
    return sorted(best[min(total for total in best if total >= channels)])


def _multiplier(where: str, factor: float) -> tuple[int, int]:
    """LiteRT's QuantizeMultiplier: 31 bits of ``factor`` and the shift to the right."""
    fraction, exponent = math.frexp(factor)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, exponent = multiplier // 2, exponent + 1
    if not (factor > 0 and exponent <= 0 and -exponent <= MAX_SHIFT):
        raise EpicnnError(
            f"{where}: expected a scale of input times weights over output from 2^-{MAX_SHIFT + 1} to 1, "
            f"got {factor:.3g}"
        )
    return multiplier, -exponent


def _scaled_by(values: np.ndarray, multiplier: int, shift: int) -> np.ndarray:
    """LiteRT's MultiplyByQuantizedMultiplier, which rounds twice."""
    high = (values * multiplier + (1 << 30)) >> 31
    if shift == 0:
        return high
    return (high + (1 << (shift - 1)) + (high >> 31)) >> shift


def _aligned(n: int) -> int:
    return -(-n // WORD_BYTES) * WORD_BYTES
