"""Check a model for the Edge TPU: documented constraints, and its compiler if available.

No package registry has ``edgetpu_compiler``. The constraints are therefore always checked, and the compiler runs if it
is on PATH. Source of both: Coral documentation, 'TensorFlow models on the Edge TPU' and 'Edge TPU Compiler'.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from boards.fit.accelerator import Compiled, CompilerError, run_compiler
from boards.fit.graph import Graph, Step, Tensor

COMPILER = "edgetpu_compiler"
MISSING = f"{COMPILER} is not on PATH"
MAPPED = "Mapped to Edge TPU"

_VERSION = re.compile(r"Edge TPU Compiler version (\S+)")
# Row of the operation log: name, count and status, separated by two or more spaces.
_ROW = re.compile(r"^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)


def available() -> bool:
    """Return True if the compiler is on PATH."""
    return shutil.which(COMPILER) is not None


def broken_constraints(graph: Graph) -> tuple[str, ...]:
    """Return the documented constraints that ``graph`` violates, beyond int8, static shapes and listed operators."""
    broken = [
        f"{tensor.name!r} has the shape {list(tensor.shape)}, only the three innermost sizes may be above 1"
        for tensor in _activations(graph)
        if any(side > 1 for side in tensor.shape[:-3])
    ]
    for step in graph.steps:
        broken += [f"{step.operator}: {problem}" for problem in _problems(step)]
    return tuple(broken)


def _activations(graph: Graph) -> list[Tensor]:
    """Return the computed tensors, each once, in order."""
    computed = [
        tensor for step in graph.steps for tensor in (*step.inputs, *step.outputs) if not tensor.constant
    ]
    return list(dict.fromkeys(computed))


def _problems(step: Step) -> list[str]:
    problems = []
    if step.operator in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        if step.dilation[0] != step.dilation[1]:
            problems.append(f"dilation {step.dilation}, must be the same along both axes")
        if step.operator == "DEPTHWISE_CONV_2D" and step.dilation != (1, 1):
            problems.append(f"dilation {step.dilation}, a depthwise convolution must have none")
    if step.operator in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        computed = [tensor for tensor in step.inputs[1:] if not tensor.constant]
        problems += [
            f"{tensor.name!r} is computed, weights and biases must be constants" for tensor in computed
        ]
    if step.operator in ("AVERAGE_POOL_2D", "MAX_POOL_2D") and step.activation != "NONE":
        problems.append(f"{step.activation} is fused into it, a pool must have no activation")
    if step.operator == "FULLY_CONNECTED" and any(side > 1 for side in step.outputs[0].shape[:-1]):
        problems.append(f"output {list(step.outputs[0].shape)}, must have one dimension")
    if step.operator == "MEAN":
        rank = len(step.inputs[0].shape)
        axes = step.inputs[1].values
        if axes is None or any(axis % rank not in (1, 2) for axis in axes):
            problems.append(f"reduces along {axes}, may do so along time and receivers only")
    return problems


def compile_encoder(model: bytes) -> Compiled:
    """Compile ``model`` with the ``edgetpu_compiler`` on PATH.

    Raises:
        CompilerError: The compiler failed; the message has its output.
    """
    with tempfile.TemporaryDirectory(prefix="epic-edgetpu-") as name:
        folder = Path(name)
        (folder / "encoder.tflite").write_bytes(model)
        compiled, log = folder / "encoder_edgetpu.tflite", folder / "encoder_edgetpu.log"
        said = run_compiler(
            COMPILER, [COMPILER, "-s", "-o", str(folder), str(folder / "encoder.tflite")], makes=compiled
        )
        text = log.read_text() if log.exists() else said
        result = compiled.read_bytes()
    return read_log(text, said, result)


def read_log(log: str, said: str, model: bytes) -> Compiled:
    """Parse the compiler's operation ``log`` and its output ``said``.

    Raises:
        CompilerError: The log cannot be parsed.
    """
    rows = _ROW.findall(log)
    if not rows:
        raise CompilerError(f"{COMPILER}: expected rows of operator, count and status in its log, got none")
    version = _VERSION.search(said) or _VERSION.search(log)
    return Compiled(
        compiler=COMPILER,
        version=version[1] if version else "unknown",
        model=model,
        operators_mapped=sum(int(count) for _, count, status in rows if status == MAPPED),
        on_cpu=tuple(f"{count} {name} ({status})" for name, count, status in rows if status != MAPPED),
    )
