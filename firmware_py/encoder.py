"""The int8 encoder on a TFLite runtime: LiteRT, else its predecessor tflite-runtime."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from firmware_py.bundle import Bundle
from firmware_py.compand import GatherError, compand, quantise


class EncoderError(RuntimeError):
    """No runtime, or a model that is not what the bundle's manifest says."""


@contextmanager
def _quiet() -> Iterator[None]:
    """LiteRT notes its delegate on the error stream itself, where a device promises one line an error."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _interpreter(path: str) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise EncoderError(
                "encoder: no TFLite runtime found; pip install ai-edge-litert "
                "(or tflite-runtime with numpy < 2 on a 32-bit board)"
            ) from None
    try:
        with _quiet():
            interpreter = Interpreter(model_path=path, num_threads=1)
            interpreter.allocate_tensors()
        return interpreter
    except (ValueError, RuntimeError) as error:
        raise EncoderError(f"{path}: the runtime cannot load this model ({error}); convert again") from None


class Encoder:
    """Latents of a device's recordings, with the model and quantisation of a verified ``Bundle``."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._interpreter = _interpreter(str(bundle.encoder_path))
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise EncoderError(
                f"{bundle.encoder_path}: expected one input and one output, got {len(inputs)} and "
                f"{len(outputs)}; convert again"
            )
        given, taken = inputs[0], outputs[0]
        for name, tensor, expected in (("input", given, bundle.input), ("output", taken, bundle.output)):
            scale, zero_point = tensor["quantization"]
            if (
                tensor["dtype"] != np.int8
                or tuple(tensor["shape"]) != expected.shape
                or not np.isclose(scale, expected.scale)
                or zero_point != expected.zero_point
            ):
                raise EncoderError(
                    f"{bundle.encoder_path}: {name} is {tensor['dtype'].__name__} {tuple(tensor['shape'])} "
                    f"with scale {scale}, zero point {zero_point}; the manifest says int8 {expected.shape}, "
                    f"{expected.scale}, {expected.zero_point}; convert again"
                )
        self._input, self._output = given["index"], taken["index"]
        # Of the latest run, the network alone.
        self.network_s = 0.0
        # The first run packs the weights: no event is to wait for it.
        self.encode(np.zeros(bundle.input.shape[1:], np.int8))

    def encode(self, companded: np.ndarray) -> np.ndarray:
        """int8 ``(T', width, S)`` -> int8 latent ``(latent,)``."""
        self._interpreter.set_tensor(self._input, companded[None])
        started_s = time.perf_counter()
        self._interpreter.invoke()
        self.network_s = time.perf_counter() - started_s
        return self._interpreter.get_tensor(self._output)[0]

    def encode_recording(self, part: np.ndarray) -> np.ndarray:
        """A device's part of a gather, float ``(S, T, R)`` -> int8 latent: thin, compand, quantise, encode.

        Raises ``GatherError`` for a part that cannot be encoded.
        """
        bundle = self.bundle
        companded = compand(part, bundle.companding, bundle.width)
        if companded.shape != bundle.input.shape[1:]:
            raise GatherError(
                f"gather: expected what thins to {bundle.input.shape[1:]} (time, receivers, sources), "
                f"got {companded.shape} from {part.shape}; is this the survey the bundle was made for?"
            )
        return self.encode(quantise(companded, bundle.input.scale, bundle.input.zero_point))
