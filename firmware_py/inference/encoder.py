"""Run the int8 encoder on LiteRT or tflite-runtime, on the processor or an Edge TPU."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from firmware_py.errors import FirmwareError
from firmware_py.inference.bundle import Bundle, compiled_encoder
from firmware_py.inference.companding import GatherError, compand, dequantise, quantise
from firmware_py.inference.hush import hush_runtime

# TFLite delegate libraries of the system, by accelerator.
DELEGATES = {"edgetpu": "libedgetpu.so.1"}


class EncoderError(FirmwareError, RuntimeError):
    """The runtime or accelerator is missing, or the model does not match the bundle's manifest."""


def _interpreter(path: str, accelerator: str) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, load_delegate
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter, load_delegate
        except ImportError:
            raise EncoderError("encoder: no TFLite runtime found; pip install ai-edge-litert") from None
    delegates = []
    if accelerator:
        try:
            # Load the library directly first: load_delegate prints a traceback if it is missing.
            ctypes.CDLL(DELEGATES[accelerator])
            delegates.append(load_delegate(DELEGATES[accelerator]))
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"encoder: no {accelerator} ({' '.join(str(error).split())}); expected {DELEGATES[accelerator]} and it "
                "plugged in, with this user in its group (plugdev or apex); or leave out [node] accelerator"
            ) from None
    try:
        with hush_runtime():
            interpreter = Interpreter(
                model_path=path, num_threads=1, experimental_delegates=delegates or None
            )
            interpreter.allocate_tensors()
        return interpreter
    except (ValueError, RuntimeError) as error:
        raise EncoderError(f"{path}: the runtime cannot load this model ({error}); convert again") from None


class Encoder:
    """Encoder of a device's recordings, with the model and quantisation of a verified ``Bundle``.

    ``accelerator`` is one of ``DELEGATES``, or empty for the processor.

    Raises:
        EncoderError: The runtime or accelerator is missing, or the model does not match.
    """

    def __init__(self, bundle: Bundle, accelerator: str = "") -> None:
        self.bundle = bundle
        path = bundle.encoder_path
        if accelerator:
            path = bundle.folder / compiled_encoder(accelerator)
            if path.name not in bundle.manifest["files"]:
                raise EncoderError(
                    f'{bundle.folder}: expected {path.name} for [node] accelerator = "{accelerator}", got a bundle '
                    "without; convert with --board and the board's compiler on PATH, or leave it out"
                )
        self._interpreter = _interpreter(str(path), accelerator)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise EncoderError(
                f"{path}: expected one input and one output, got {len(inputs)} and "
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
                    f"{path}: {name} is {tensor['dtype'].__name__} {tuple(tensor['shape'])} "
                    f"with scale {scale}, zero point {zero_point}; the manifest says int8 {expected.shape}, "
                    f"{expected.scale}, {expected.zero_point}; convert again"
                )
        self._input, self._output = given["index"], taken["index"]
        # Time of the latest run, the network alone.
        self.network_s = 0.0
        # The first run packs the weights, so do it before the first event.
        self.encode(np.zeros(bundle.input.shape[1:], np.int8))

    def encode(self, companded: np.ndarray) -> np.ndarray:
        """Encode int8 ``(T', width, S)`` to an int8 latent ``(latent,)``."""
        self._interpreter.set_tensor(self._input, companded[None])
        started_s = time.perf_counter()
        self._interpreter.invoke()
        self.network_s = time.perf_counter() - started_s
        return self._interpreter.get_tensor(self._output)[0]

    def encode_parts(self, parts: np.ndarray) -> np.ndarray:
        """Encode companded parts float ``(n, T', width, S)``; return the latents as real values ``(n, latent)``."""
        into, out = self.bundle.input, self.bundle.output
        codes = quantise(parts, into.scale, into.zero_point)
        return dequantise(np.stack([self.encode(part) for part in codes]), out.scale, out.zero_point)

    def encode_recording(self, part: np.ndarray) -> np.ndarray:
        """Encode a device's part of a gather, float ``(S, T, R)``, to an int8 latent ``(latent,)``.

        Raises:
            GatherError: The part cannot be encoded.
        """
        bundle = self.bundle
        companded = compand(part, bundle.companding, bundle.width)
        if companded.shape != bundle.input.shape[1:]:
            raise GatherError(
                f"gather: expected what thins to {bundle.input.shape[1:]} (time, receivers, sources), "
                f"got {companded.shape} from {part.shape}; is this the survey the bundle was made for?"
            )
        return self.encode(quantise(companded, bundle.input.scale, bundle.input.zero_point))
