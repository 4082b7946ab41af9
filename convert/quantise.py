"""Convert a Keras encoder to full int8: int8 input, weights, activations and output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from boards.quiet import hold_output
from convert.errors import ConversionError, QuantisationError


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
    the same bytes.

    Args:
        encoder: Keras model with one input ``(batch, time, width, sources)`` and one output ``(batch, latent)``.
        representative: Companded training inputs, ``(n, time, width, sources)`` float32; their order matters.

    Raises:
        QuantisationError: The network cannot be converted.
        ConversionError: Weights or inputs are not finite, or their shapes do not match.
    """
    import tensorflow as tf

    _check(encoder, representative)
    fixed = rebuild_batch_one(encoder)

    def samples() -> Iterator[list[np.ndarray]]:
        for row in representative:
            yield [np.ascontiguousarray(row[None], dtype=np.float32)]

    converter = tf.lite.TFLiteConverter.from_keras_model(fixed)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    try:
        with hold_output():
            model = converter.convert()
    except Exception as error:  # The converter raises many exception types, some from C++.
        reason = str(error).strip().splitlines()
        raise QuantisationError(
            f"the TFLite converter refused the encoder: {reason[0] if reason else type(error).__name__}; "
            "use only the operators listed in boards/fit/graph.py"
        ) from error
    return bytes(model)


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
