"""Start a run from the weights of another run or of a released model, possibly of another size.

A released encoder exists only as int8, with batch normalisation folded into the convolutions. Its weights are read from
the .tflite file. The normalisation is measured again on training data, so that it changes nothing. If the new network
is larger, it first reproduces the old output: new channels feed only new channels, and residual blocks start as the
identity.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from firmware_py.inference.companding import Companding
from models.errors import TrainingError
from models.training.run_config import read_config
from models.training.training import load_checkpoint, load_network

# Device parts for measuring the folded normalisation again.
MEASURED_PARTS = 1000
# Finds the layer in a .tflite tensor name. The converter prefixes the network's name, adds _1, _2 ... to names in use,
# and names a folded depthwise kernel after the normalisation or the activation that follows it.
KERNEL_TENSOR = re.compile(r"^device_encoder(?:_\d+)?/(\w+?)(?:_norm|_relu)?(?:_\d+)?/")

# Last layer of each residual branch of the decoder. Zero weights make a branch without old weights a no-op.
RESIDUAL_END = re.compile(r"(_mlp_down|_attention/attention_output|(?:refine|pixels)\d+_mix)/(kernel|bias)$")


@dataclass(frozen=True)
class Origin:
    """Weights to start from, by name (``layer/variable``), and whether the encoder's normalisation is folded.

    ``trained_on`` comes from a run's configuration (``RunConfig.stages``); it is empty for a released model.
    """

    encoder: dict[str, np.ndarray]
    decoder: dict[str, np.ndarray]
    companding: Companding
    folded: bool
    trained_on: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class CentralOrigin:
    """Weights of a centralised network, and the range that scales its input."""

    weights: list[np.ndarray]
    scaled_by: list[float]
    trained_on: list[dict]

    def log_range(self) -> list[float]:
        return self.scaled_by


def read_origin(folder: Path) -> Origin:
    """Read the weights of a run folder or of a released model. Raises ``TrainingError``."""
    if (folder / "bundle" / "manifest.json").exists():
        manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
        return Origin(
            encoder=_read_encoder((folder / "bundle" / "encoder.tflite").read_bytes()),
            decoder=_named(load_network(folder / "decoder" / "decoder.keras")),
            companding=Companding.from_dict(manifest["companding"]),
            folded=True,
        )
    if not (folder / "config.json").exists():
        raise TrainingError(
            f"{folder}: expected a run folder (config.json) or a released model (bundle/, decoder/); "
            "choose another --start-from"
        )
    config = read_config(folder)
    if config.kind != "epic" or config.companding is None:
        raise TrainingError(
            f"{folder}: expected a run folder of epic, got {config.kind}; choose another --start-from"
        )
    network = load_checkpoint(folder, best=True)
    return Origin(
        encoder=_named(network.get_layer("device_encoder")),
        decoder=_named(network.get_layer("fusion_decoder")),
        companding=Companding.from_dict(config.companding),
        folded=False,
        trained_on=config.stages(),
    )


def read_central(folder: Path, kind: str) -> CentralOrigin:
    """Read the weights of a run of the centralised network ``kind``. Raises ``TrainingError``."""
    config = read_config(folder)
    if config.kind != kind or config.log_range is None:
        raise TrainingError(
            f"{folder}: expected a run folder of {kind}, got {config.kind}; choose another --start-from"
        )
    return CentralOrigin(load_checkpoint(folder, best=True).get_weights(), config.log_range, config.stages())


def fits_decoder(origin: Origin, decoder: keras.Model) -> bool:
    """Return True if ``decoder`` has the origin's width and at least its depth; otherwise it starts untrained."""
    fresh = _named(decoder)
    return set(origin.decoder) <= set(fresh) and all(
        origin.decoder[name].shape == fresh[name].shape
        for name in ("queries/table", "expand/kernel")
        if name in origin.decoder
    )


def begin_with(origin: Origin, encoder: keras.Model, decoder: keras.Model, parts: np.ndarray) -> None:
    """Copy the weights of ``origin`` into ``encoder`` and ``decoder`` wherever the names match.

    ``parts (n, n_time, width, n_sources)`` are companded training inputs for measuring a folded normalisation again.

    Raises:
        TrainingError: The encoder has no layer for a kernel of a released one.
    """
    if origin.folded:
        layers = {_name(variable) for variable in encoder.weights}
        lost = [name for name in origin.encoder if name.endswith("/kernel") and name not in layers]
        if lost:
            raise TrainingError(
                f"start: the encoder to train has no layer for {', '.join(lost)}; begin with a run folder"
            )
    for network, weights in ((encoder, origin.encoder), (decoder, origin.decoder)):
        for variable in network.weights:
            name, fresh = _name(variable), np.array(variable)
            if name == "latent/kernel":
                # After a Flatten layer, the channels are part of the first axis.
                old = weights[name].reshape(-1, weights["bottleneck/bias"].size, weights[name].shape[-1])
                places = fresh.reshape(-1, encoder.get_layer("bottleneck").filters, fresh.shape[-1])
                variable.assign(grown(old, places).reshape(fresh.shape))
            elif name in weights:
                variable.assign(grown(weights[name], fresh, depthwise="_depth/" in name))
            elif weights and RESIDUAL_END.search(name):
                variable.assign(np.zeros_like(fresh))
    if origin.folded:
        _measure_normalisation(origin, encoder, parts[:MEASURED_PARTS])


def grown(old: np.ndarray, fresh: np.ndarray, depthwise: bool = False) -> np.ndarray:
    """Return ``fresh`` with ``old`` in its corner and zeros from new inputs to old outputs.

    The last two axes of a kernel are its inputs and outputs; of a depthwise kernel, its channels and 1.
    """
    if old.ndim != fresh.ndim:
        raise TrainingError(f"start: expected weights of {fresh.ndim} axes, got {old.ndim}; another network")
    corner = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, fresh.shape, strict=True))
    result = fresh.copy()
    if old.ndim > 1 and not depthwise:
        result[..., old.shape[-2] :, : old.shape[-1]] = 0.0
    result[corner] = old[corner]
    return result


def _measure_normalisation(origin: Origin, encoder: keras.Model, parts: np.ndarray) -> None:
    """Set each batch normalisation so that it adds the folded bias and is the identity otherwise."""
    for layer in encoder.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        bias = origin.encoder.get(f"{layer.name.removesuffix('_norm')}/bias")
        if bias is None:
            continue
        before = keras.Model(encoder.input, layer.input)
        values = before.predict(parts, batch_size=100, verbose=0)
        mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
        known = min(len(bias), len(mean))
        gamma, beta = np.array(layer.gamma), np.array(layer.beta)
        gamma[:known] = np.sqrt(variance + layer.epsilon)[:known]
        beta[:known] = bias[:known] + mean[:known]
        layer.gamma.assign(gamma)
        layer.beta.assign(beta)


def _read_encoder(model: bytes) -> dict[str, np.ndarray]:
    """Read the kernels, in Keras' layout, and folded biases of an int8 ``.tflite`` file, as real numbers."""
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    tensors = parsed.subgraphs[0].tensors

    def real(index: int, dtype: Any) -> np.ndarray:
        tensor = tensors[index]
        axis = tensor.quantization.quantizedDimension
        scale = np.asarray(tensor.quantization.scale, np.float32)
        spread = [1] * len(tensor.shape)
        spread[axis] = len(scale)
        codes = np.frombuffer(bytes(parsed.buffers[tensor.buffer].data), dtype).reshape(tensor.shape)
        return codes.astype(np.float32) * scale.reshape(spread)

    weights = {}
    for operator in parsed.subgraphs[0].operators:
        if len(operator.inputs) != 3:
            continue
        _, kernel, bias = operator.inputs
        found = KERNEL_TENSOR.search(tensors[kernel].name.decode())
        if found is None:
            raise TrainingError(
                f"start: the encoder names a kernel {tensors[kernel].name.decode()!r}, "
                "not a layer of this project's; begin with a run folder"
            )
        values = real(kernel, np.int8)
        # Dense layers are (out, in); convolutions (out, height, width, in); depthwise convolutions (1, height, width,
        # c).
        order = {True: (1, 0), False: (1, 2, 3, 0)}[values.ndim == 2]
        weights[f"{found[1]}/kernel"] = values.transpose(order)
        weights[f"{found[1]}/bias"] = real(bias, np.int32)
    return weights


def _named(network: keras.Model) -> dict[str, np.ndarray]:
    return {_name(variable): np.array(variable) for variable in network.weights}


def _name(variable: Any) -> str:
    """Return a variable's path from its layer on, without the names of enclosing networks."""
    return re.sub(r"^(?:device_encoder|fusion_decoder)(?:_\d+)?/", "", variable.path)
