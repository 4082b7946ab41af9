"""Baselines for the comparison with EPIC: the payload of a device, and the map that the centre predicts from it.

raw: float32 samples; InversionNet at the centre.

raw-compressed: the same samples as int16 scaled by the part's peak, third differences along time, zstd. It stands for
the formats of seismology (Steim-2 uses first differences) and is a quarter smaller.

split: the first blocks of that InversionNet on the device; int8 activations on the link.

federated: the network of ``models.networks.federated`` on every device, from its own receivers alone; float16 maps,
averaged at the centre.

Without a trained network the weights are random. Bytes, times and energy do not depend on the weights. No map error is
reported.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from firmware_py.inference.companding import Companding, compand, dequantise, quantise
from physics.acquisition import Acquisition
from physics.normalise import log_transform, scale_gather
from testbed.errors import TestbedError

# Name of each baseline's network in `epic train`.
NETWORKS = {
    "raw": "inversionnet",
    "raw-compressed": "inversionnet",
    "split": "inversionnet",
    "federated": "federated",
}
SCHEMES = tuple(NETWORKS)
# Level 19 saves a sixth more but takes 50-100 ms, longer than any link here needs for the saved bytes.
ZSTD_LEVEL = 9
DIFFERENCES = 3
REPRESENTATIVE_PARTS = 40
# Struct format of the header of compressed samples: the step of the int16 samples, float32.
_STEP = "<f"

Encode = Callable[[np.ndarray], bytes]
Draw = Callable[[Mapping[int, bytes]], np.ndarray]


class SchemeError(TestbedError, ValueError):
    """A baseline cannot be set up as requested."""


def find_trained(runs: list[Path]) -> dict[str, Path]:
    """Return finished runs by the kind of their network, one of ``NETWORKS``. Raises ``SchemeError``."""
    found: dict[str, Path] = {}
    for run in runs:
        try:
            kind = json.loads((run / "config.json").read_text())["kind"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SchemeError(f"{run}: not a run of `epic train` ({error})") from None
        if kind not in NETWORKS.values() or kind in found:
            raise SchemeError(
                f"{run}: a run of {kind}; expected at most one of `epic train inversionnet` and one of `epic train "
                "federated`"
            )
        found[kind] = run
    return found


def training_of(run: Path) -> str:
    """Describe how long a finished run of ``find_trained`` was trained. Raises ``SchemeError``."""
    try:
        step = json.loads((run / "metrics.json").read_text())["step"]
        batch = json.loads((run / "config.json").read_text())["budget"]["batch"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SchemeError(f"{run}: not a finished run; expected its metrics.json ({error})") from None
    return f"{step:,} steps of {batch} in its last run"


def prepare(
    folder: Path,
    gathers: np.ndarray,
    acquisition: Acquisition,
    companding: Companding,
    trained: Mapping[str, Path],
) -> None:
    """Write the files that devices and centre of all baselines need into ``folder``.

    Args:
        trained: Runs by kind, from ``find_trained``. A missing network gets random weights.
        gathers: ``(n, S, T, R)``. They give the int8 ranges of split inference and, without a trained run, the input
            range of InversionNet.
        companding: Companding of a federated network without a trained run.

    Raises:
        SchemeError: A baseline cannot be set up.
    """
    from convert.quantise import quantise as to_int8
    from models.networks.federated import build_federated
    from models.networks.inversionnet import (
        build_central_half,
        build_device_half,
        build_inversionnet,
        copy_weights,
    )

    log = log_transform(gathers)
    log_range = [float(log.min()), float(log.max())]
    if run := trained.get("inversionnet"):
        whole, config = _load(run, "inversionnet.keras", acquisition)
        log_range = config["log_range"]
    else:
        whole = build_inversionnet(acquisition)
    device, central = build_device_half(acquisition), build_central_half(acquisition)
    copy_weights(whole, device)
    copy_weights(whole, central)
    if run := trained.get("federated"):
        local, config = _load(run, "local.keras", acquisition)
        companding = Companding.from_dict(config["companding"])
    else:
        _, local = build_federated(acquisition, acquisition.n_time // companding.thin)
    parts = [
        _scaled(gather[:, :, list(group)], log_range)
        for gather in gathers
        for group in acquisition.device_receivers
        if len(group) == acquisition.max_device_receivers
    ]
    (folder / "split.tflite").write_bytes(to_int8(device, np.stack(parts[:REPRESENTATIVE_PARTS])))
    (folder / "local.tflite").write_bytes(_to_float(local))
    whole.save(folder / "whole.keras")
    central.save(folder / "central.keras")
    about = {
        "acquisition": acquisition.to_dict(),
        "log_range": log_range,
        "companding": companding.to_dict(),
    }
    (folder / "scheme.json").write_text(json.dumps(about))


def _load(run: Path, name: str, acquisition: Acquisition):
    """Load the trained network of a run, and the run's configuration."""
    import keras

    try:
        config = json.loads((run / "config.json").read_text())
        network = keras.models.load_model(run / name, compile=False)
    except (OSError, ValueError) as error:
        raise SchemeError(f"{run}: not a finished run; expected its {name} ({error})") from None
    if Acquisition.from_dict(config["acquisition"]) != acquisition:
        raise SchemeError(f"{run}: was trained for another survey than that of the model; choose another run")
    return network, config


def device_encoder(scheme: str, folder: Path) -> Encode:
    """Return the function that encodes a device's part ``(S, T, R_d)`` float32 to a payload; needs no TensorFlow."""
    if scheme == "raw":
        return lambda part: part.astype("<f4").tobytes()
    if scheme == "raw-compressed":
        return compress_part
    about = json.loads((folder / "scheme.json").read_text())
    acquisition, log_range = Acquisition.from_dict(about["acquisition"]), about["log_range"]
    if scheme == "split":
        run, scale, zero_point = _interpreter(folder / "split.tflite")

        def activations(part: np.ndarray) -> bytes:
            values = np.zeros(
                (acquisition.n_time, acquisition.max_device_receivers, acquisition.n_sources), np.float32
            )
            values[:, : part.shape[2]] = _scaled(part, log_range)
            return run(quantise(values, scale, zero_point)).tobytes()

        return activations
    run, _, _ = _interpreter(folder / "local.tflite")
    companding, width = Companding.from_dict(about["companding"]), acquisition.max_device_receivers
    return lambda part: run(compand(part, companding, width)).astype("<f2").tobytes()


def central_decoder(scheme: str, folder: Path) -> Draw:
    """Return the function that predicts a map ``(nz, nx)`` in [-1, 1] from the devices' payloads.

    The part of a missing device counts as zeros.
    """
    about = json.loads((folder / "scheme.json").read_text())
    acquisition, log_range = Acquisition.from_dict(about["acquisition"]), about["log_range"]
    if scheme == "federated":
        shape = acquisition.map_shape[1:]

        def mean(payloads: Mapping[int, bytes]) -> np.ndarray:
            maps = [np.frombuffer(data, "<f2").reshape(shape) for data in payloads.values()]
            return np.asarray(np.mean(maps, axis=0, dtype=np.float32))

        return mean
    import keras

    from models.inversion.compiled import compile_network

    name = "central" if scheme == "split" else "whole"
    call = compile_network(keras.models.load_model(folder / f"{name}.keras", compile=False))
    if scheme == "split":
        _, scale, zero_point = _interpreter(folder / "split.tflite", output=True)
        join = _joined_activations(acquisition, scale, zero_point)
    else:
        unpack = expand_part if scheme == "raw-compressed" else _raw_part
        join = _joined_gather(acquisition, log_range, unpack)
    return lambda payloads: np.asarray(call(join(payloads)[None]))[0, ..., 0]


def compress_part(part: np.ndarray) -> bytes:
    """Compress ``(S, T, R)`` float32: int16 scaled by the part's peak, differenced along time, zstd."""
    import zstandard

    # Use the step as sent: for a part near zero, it underflows to zero in float32.
    step = float(np.float32(np.abs(part).max()) / np.float32(32767)) or 1.0
    values = np.rint(part / step).astype("<i2").transpose(0, 2, 1)
    # Differences wrap in int16; the cumulative sums wrap the same way and undo them.
    for _ in range(DIFFERENCES):
        values = np.diff(values, axis=-1, prepend=np.zeros((*values.shape[:2], 1), "<i2"))
    compressed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(np.ascontiguousarray(values).tobytes())
    return struct.pack(_STEP, step) + compressed


def expand_part(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Inverse of ``compress_part``: float32 ``shape`` (S, T, R) within half a step."""
    import zstandard

    (step,) = struct.unpack_from(_STEP, data)
    plain = zstandard.ZstdDecompressor().decompress(data[struct.calcsize(_STEP) :])
    values = np.frombuffer(plain, "<i2").reshape(shape[0], shape[2], shape[1])
    for _ in range(DIFFERENCES):
        values = np.cumsum(values, axis=-1, dtype=np.int16)
    return (values.transpose(0, 2, 1) * np.float32(step)).astype(np.float32)


def _raw_part(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(shape)


def _scaled(gather: np.ndarray, log_range: list[float]) -> np.ndarray:
    """Apply the benchmark's input transform: ``(S, T, R)`` -> ``(T, R, S)`` in about [-1, 1]."""
    scaled = scale_gather(gather.astype(np.float32), (log_range[0], log_range[1]))
    return scaled.transpose(1, 2, 0).astype(np.float32)


def _joined_gather(
    acquisition: Acquisition,
    log_range: list[float],
    unpack: Callable[[bytes, tuple[int, int, int]], np.ndarray],
) -> Callable[[Mapping[int, bytes]], np.ndarray]:
    def join(payloads: Mapping[int, bytes]) -> np.ndarray:
        gather = np.zeros(acquisition.gather_shape, np.float32)
        for device, data in payloads.items():
            group = list(acquisition.device_receivers[device])
            gather[:, :, group] = unpack(data, (acquisition.n_sources, acquisition.n_time, len(group)))
        return _scaled(gather, log_range)

    return join


def _joined_activations(
    acquisition: Acquisition, scale: float, zero_point: int
) -> Callable[[Mapping[int, bytes]], np.ndarray]:
    width = acquisition.max_device_receivers

    def join(payloads: Mapping[int, bytes]) -> np.ndarray:
        first = np.frombuffer(next(iter(payloads.values())), np.int8)
        n_time = -(-acquisition.n_time // 16)
        inner = np.zeros((n_time, acquisition.n_receivers, len(first) // (n_time * width)), np.float32)
        for device, data in payloads.items():
            group = list(acquisition.device_receivers[device])
            values = np.frombuffer(data, np.int8).reshape(n_time, width, -1)[:, : len(group)]
            inner[:, group] = dequantise(values, scale, zero_point)
        return inner

    return join


def _to_float(network) -> bytes:
    import tensorflow as tf

    from boards.quiet import hold_output
    from convert.quantise import rebuild_batch_one

    converter = tf.lite.TFLiteConverter.from_keras_model(rebuild_batch_one(network))
    with hold_output():
        return bytes(converter.convert())


def _interpreter(path: Path, output: bool = False) -> tuple[Callable[[np.ndarray], np.ndarray], float, int]:
    """Return a function that runs one sample on one thread.

    Also return scale and zero point of the model's input or, with ``output``, of its output.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(values: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(inputs["index"], values[None])
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])[0]

    scale, zero_point = (outputs if output else inputs)["quantization"]
    return run, float(scale), int(zero_point)
