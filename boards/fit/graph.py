"""Parse a .tflite file, and check that every device runtime supports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from boards.errors import BoardsError

# TFLite-Micro, Arm Ethos-U and the Edge TPU all have these in int8.
ALLOWED_OPERATORS = frozenset(
    {
        "ADD",
        "AVERAGE_POOL_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "MAX_POOL_2D",
        "MEAN",
        "RELU",
        "RELU6",
        "RESHAPE",
    }
)
# int32 holds biases and shapes; all computed values are int8.
ALLOWED_DTYPES = frozenset({"INT8", "INT32"})
# Maximum int32 constant kept, in values; longer ones are biases, which are not needed.
MOST_VALUES = 8


class GraphError(BoardsError, ValueError):
    """The file is not a TFLite model, or contains something that no device of this project can run."""


@dataclass(frozen=True)
class Tensor:
    """Tensor of the graph.

    ``scale`` and ``zero_point`` are None unless there is exactly one of each. ``values`` holds a short int32 constant
    (axes, a shape), None for other tensors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None
    constant: bool
    dynamic: bool
    values: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One operator. ``stride`` and ``dilation`` are (time, receivers), 1 by default; ``activation`` is the fused
    one.
    """

    operator: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "NONE"


@dataclass(frozen=True)
class Graph:
    """A .tflite model with one subgraph, in the order in which its operators run."""

    steps: tuple[Step, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    file_bytes: int

    @cached_property
    def operators(self) -> tuple[str, ...]:
        return tuple(step.operator for step in self.steps)

    @cached_property
    def operator_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(self.operators).items()))


def read_graph(model: bytes) -> Graph:
    """Read operators and tensors of the file content ``model``.

    Raises:
        GraphError: The model is damaged, or has several subgraphs.
    """
    if len(model) < 8 or model[4:8] != b"TFL3":
        raise GraphError("expected a TFLite model (identifier TFL3), got another kind of file")
    try:
        return _read_graph(model)
    except (GraphError, ImportError):
        raise
    except Exception as error:
        # In a damaged file the reader follows arbitrary offsets and raises arbitrary errors.
        raise GraphError(f"not a whole TFLite model ({error!r}); copy it again, or convert again") from None


def _read_graph(model: bytes) -> Graph:
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    if len(parsed.subgraphs) != 1:
        raise GraphError(
            f"expected a model of one subgraph, got {len(parsed.subgraphs)}; a device runs no control flow"
        )
    operator_names, type_names, activation_names = (
        {value: name for name, value in vars(kind).items() if name.isupper()}
        for kind in (schema.BuiltinOperator, schema.TensorType, schema.ActivationFunctionType)
    )
    graph = parsed.subgraphs[0]

    def operator(raw: schema.OperatorT) -> str:
        code = parsed.operatorCodes[raw.opcodeIndex]
        if code.customCode:
            return f"CUSTOM:{code.customCode.decode(errors='replace')}"
        # Codes above 127 do not fit the old 8-bit field, which then holds a placeholder.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return operator_names.get(number, f"operator {number}")

    tensors = tuple(
        _tensor(
            raw,
            raw.name.decode(errors="replace") if raw.name else f"tensor {index}",
            type_names.get(raw.type, f"type {raw.type}"),
            parsed.buffers[raw.buffer].data,
        )
        for index, raw in enumerate(graph.tensors)
    )

    def step(raw: schema.OperatorT) -> Step:
        def option(name: str, default: int) -> int:
            return int(getattr(raw.builtinOptions, name, default))

        return Step(
            operator=operator(raw),
            # An omitted optional input has index -1.
            inputs=tuple(tensors[index] for index in _as_list(raw.inputs) if index >= 0),
            outputs=tuple(tensors[index] for index in _as_list(raw.outputs)),
            stride=(option("strideH", 1), option("strideW", 1)),
            dilation=(option("dilationHFactor", 1), option("dilationWFactor", 1)),
            activation=activation_names[option("fusedActivationFunction", 0)],
        )

    return Graph(
        steps=tuple(step(raw) for raw in graph.operators or []),
        tensors=tensors,
        inputs=tuple(tensors[index] for index in graph.inputs),
        outputs=tuple(tensors[index] for index in graph.outputs),
        file_bytes=len(model),
    )


def _tensor(raw: Any, name: str, dtype: str, data: Any) -> Tensor:
    """Return the tensor of the schema's ``raw``; ``data`` are the bytes of a constant, None for other tensors."""
    scales = _as_list(raw.quantization.scale if raw.quantization else None)
    zero_points = _as_list(raw.quantization.zeroPoint if raw.quantization else None)
    single = len(scales) == 1
    constant = data is not None and len(data) > 0
    short = constant and dtype == "INT32" and len(data) <= MOST_VALUES * 4
    return Tensor(
        name=name,
        shape=tuple(int(side) for side in _as_list(raw.shape)),
        dtype=dtype,
        scale=float(scales[0]) if single else None,
        zero_point=int(zero_points[0]) if single and zero_points else None,
        constant=constant,
        dynamic=any(side < 0 for side in _as_list(raw.shapeSignature)),
        values=tuple(memoryview(bytes(data)).cast("i")) if short else None,
    )


def check_graph(graph: Graph, allowed: Collection[str] = ALLOWED_OPERATORS) -> None:
    """Raise ``GraphError`` unless the model is fully int8, static, and of allowed operators."""
    floats = [t for t in graph.tensors if t.dtype not in ALLOWED_DTYPES]
    if floats:
        raise GraphError(
            f"expected int8 tensors throughout, got {floats[0].dtype} in {floats[0].name!r}"
            f"{_and_more(floats)}; a layer has no int8 form, replace it"
        )
    foreign = sorted(set(graph.operators) - set(allowed))
    if foreign:
        raise GraphError(
            f"operators {', '.join(foreign)} are not in the device runtime; "
            f"it has {', '.join(sorted(allowed))}"
        )
    dynamic = [t for t in graph.tensors if t.dynamic]
    if dynamic:
        raise GraphError(
            f"expected static shapes, got a free axis in {dynamic[0].name!r}{_and_more(dynamic)}; "
            "convert the network rebuilt for batch 1"
        )
    for side, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1 or tensors[0].dtype != "INT8" or tensors[0].scale is None:
            raise GraphError(
                f"expected one quantised int8 {side}, got {[(t.name, t.dtype) for t in tensors]}"
            )


def _as_list(values: object) -> list:
    return [] if values is None else list(values)  # type: ignore[call-overload]


def _and_more(items: list) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""
