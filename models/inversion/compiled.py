"""Compile networks for inference.

A decoder runs in LiteRT: one event a call, on one core. Its maps are those of TensorFlow within 0.003 m/s. A call takes
half the processor time that it takes through XLA. Events of a batch are predicted one by one, about as fast as XLA
predicts 16 together. A map then does not depend on what is decoded with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from firmware_py.inference.hush import hush_runtime


def compile_network(network: keras.Model) -> Callable:
    """Compile ``network`` to one function; eager calls take 30-60 times as long."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda inputs: network(inputs, training=False))
    import tensorflow as tf

    return tf.function(lambda inputs: network(inputs, training=False), autograph=False)


def compile_decoder(
    network: keras.Model, positions: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Compile a decoder's network for devices at ``positions (n_devices, 2)``.

    Returns:
        Function of one event's latents ``(n_devices, latent)`` and mask ``(n_devices,)``, both float32. It returns
            ``(nz, nx, 2)``, velocity and log scale as the network predicts them. Any thread may call it.
    """
    if keras.backend.backend() == "jax":
        # The converter to LiteRT takes TensorFlow's functions only.
        call = compile_network(network)

        def predict_by_jax(latents: np.ndarray, mask: np.ndarray) -> np.ndarray:
            predicted = call({"latents": latents[None], "positions": positions[None], "mask": mask[None]})
            return np.concatenate([predicted["velocity"][0], predicted["log_scale"][0]], axis=-1)

        return predict_by_jax

    interpreter = _interpreter(_convert(network, positions))
    # The two inputs have different ranks.
    given = {len(tensor["shape"]): tensor["index"] for tensor in interpreter.get_input_details()}
    (result,) = interpreter.get_output_details()
    turn = threading.Lock()

    def predict(latents: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with turn:
            interpreter.set_tensor(given[3], latents[None])
            interpreter.set_tensor(given[2], mask[None])
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])[0]

    return predict


def _convert(network: keras.Model, positions: np.ndarray) -> bytes:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    places = tf.constant(positions[None], tf.float32)

    def predict(latents, mask):
        predicted = network({"latents": latents, "positions": places, "mask": mask}, training=False)
        return tf.concat([predicted["velocity"], predicted["log_scale"]], axis=-1)

    n_devices, latent = network.input["latents"].shape[1:]
    traced = tf.function(predict, autograph=False).get_concrete_function(
        tf.TensorSpec((1, n_devices, latent), name="latents"), tf.TensorSpec((1, n_devices), name="mask")
    )
    # Constants: the converter takes no variables, and computes at once what depends on the positions alone.
    frozen = convert_variables_to_constants_v2(traced)
    with _no_warnings():
        return tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Hush the converter: it calls this path deprecated, and the other one does not take constants."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _interpreter(model: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with hush_runtime():
        interpreter = Interpreter(model_content=model, num_threads=1)
        interpreter.allocate_tensors()
    return interpreter
