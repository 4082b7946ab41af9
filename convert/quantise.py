"""Convert a Keras encoder to full int8: int8 input, weights, activations and output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from convert.converter import ENCODER, MODEL, REFUSAL, REPRESENTATIVE
from convert.errors import ConversionError, QuantisationError

CONVERTER: tuple[str, ...] = (sys.executable, "-m", "convert.converter")


def rebuild_batch_one(encoder: Any) -> Any:
    """Return the same Keras network and weights with the batch axis fixed at one.

    A free batch axis makes the converter compute shapes at run time (SHAPE, PACK and STRIDED_SLICE operators). Neither
    an Edge TPU nor a small TFLite-Micro build supports these.
    """
    import keras

    shape = encoder.input_shape
    if not isinstance(shape, tuple) or any(side is None for side in shape[1:]):
        raise QuantisationError(f"encoder: expected one input of fixed size, got input shape {shape}")
    fixed = keras.Input(shape=shape[1:], batch_size=1, dtype="float32", name="gather")
    clone = keras.models.clone_model(encoder, input_tensors=fixed)
    clone.set_weights(encoder.get_weights())
    return clone


def quantise(encoder: Any, representative: np.ndarray) -> bytes:
    """Convert ``encoder`` to a full-int8 TFLite model and return the file content.

    Weights are quantised per channel, activations by the ranges in ``representative``. The same network and array give
    the same bytes. The converter is C++ code that can crash on an unusual network, so it runs in a process of its own
    (``convert.converter``).

    Args:
        encoder: Keras model with one input ``(batch, time, width, sources)`` and one output ``(batch, latent)``.
        representative: Companded training inputs, ``(n, time, width, sources)`` float32; their order matters.

    Raises:
        QuantisationError: The network cannot be converted, or the converter died.
        ConversionError: Weights or inputs are not finite, or their shapes do not match.
    """
    _check(encoder, representative)
    fixed = rebuild_batch_one(encoder)
    with tempfile.TemporaryDirectory(prefix="epic-converter-") as name:
        folder = Path(name)
        fixed.save(folder / ENCODER)
        np.save(folder / REPRESENTATIVE, np.ascontiguousarray(representative, np.float32))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [*CONVERTER, name], env=environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        if (folder / REFUSAL).exists():
            raise QuantisationError(
                f"the TFLite converter refused the encoder: {(folder / REFUSAL).read_text()}; use only the operators "
                "listed in boards/fit/graph.py"
            )
        if done.returncode:
            raise QuantisationError(
                f"the TFLite converter died ({_reason(done)}) on an encoder of {', '.join(layer_types(fixed))}; use "
                "only layers that become the operators listed in boards/fit/graph.py, such as Conv2D and Dense"
            )
        return (folder / MODEL).read_bytes()


def layer_types(network: Any) -> list[str]:
    """Return the names of the layer classes of ``network``, sorted."""
    return sorted({type(layer).__name__ for layer in network.layers} - {"InputLayer"})


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return why the process ended: its signal, or the last line it wrote."""
    if done.returncode < 0:
        number = -done.returncode
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"{name}, perhaps for lack of memory" if number == signal.SIGKILL else name
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"exit code {done.returncode}: {lines[-1] if lines else 'no message'}"


def _check(encoder: Any, representative: np.ndarray) -> None:
    expected = tuple(encoder.input_shape[1:])
    if representative.ndim != 4 or len(representative) == 0 or representative.shape[1:] != expected:
        raise ConversionError(
            f"representative set: expected (n, {', '.join(map(str, expected))}) as the encoder's input, "
            f"got {representative.shape}; is the companding that of the training run?"
        )
    if not np.isfinite(representative).all():
        raise ConversionError(
            "representative set: expected finite values, got NaN or infinity in the gathers"
        )
    for weight, values in zip(encoder.weights, encoder.get_weights(), strict=True):
        if not np.isfinite(values).all():
            raise ConversionError(
                f"encoder weight {weight.path}: expected finite values, got NaN or infinity; "
                "training has diverged, take an earlier checkpoint"
            )
