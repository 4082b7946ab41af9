"""Beginning a run with the weights of another: a run folder, or a released model of another size.

A released encoder exists only as int8 with its batch normalisation folded into its convolutions. Its weights
are read back from the file, and the normalisation is measured anew on training data so that it changes
nothing. What is larger in the new network than in the old one starts so that the old one's output stays: new
channels feed new channels only, and residual blocks begin as the identity.
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

# Over so many device parts the folded normalisation is measured anew.
MEASURED_PARTS = 1000
# The layer in the name of its kernel's tensor in a .tflite: the converter prefixes the network, adds _1, _2 ...
# to names in use, and calls a folded depthwise kernel after the activation behind it.
KERNEL_TENSOR = re.compile(r"^device_encoder(?:_\d+)?/(\w+?)(?:_relu)?(?:_\d+)?/")

# The last layer of each of the decoder's residual branches: zero, and a branch that the origin has not adds nothing.
RESIDUAL_END = re.compile(r"(_mlp_down|_attention/attention_output|refine\d+_mix)/(kernel|bias)$")


@dataclass(frozen=True)
class Origin:
    """Weights by name (``layer/variable``), and whether the encoder's normalisation is folded away.

    ``trained_on`` is what a run's own configuration says of it (``RunConfig.stages``); a released model says nothing.
    """

    encoder: dict[str, np.ndarray]
    decoder: dict[str, np.ndarray]
    companding: Companding
    folded: bool
    trained_on: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class CentralOrigin:
    """Weights of a centralised network, and the range that its input is scaled by."""

    weights: list[np.ndarray]
    scaled_by: list[float]
    trained_on: list[dict]

    def log_range(self) -> list[float]:
        return self.scaled_by


def read_origin(folder: Path) -> Origin:
    """The weights of a run folder or of a released model. Raises ``TrainingError``."""
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
    network = load_checkpoint(folder)
    return Origin(
        encoder=_named(network.get_layer("device_encoder")),
        decoder=_named(network.get_layer("fusion_decoder")),
        companding=Companding.from_dict(config.companding),
        folded=False,
        trained_on=config.stages(),
    )


def read_central(folder: Path, kind: str) -> CentralOrigin:
    """What a run folder of the centralised network ``kind`` has learnt. Raises ``TrainingError``."""
    config = read_config(folder)
    if config.kind != kind or config.log_range is None:
        raise TrainingError(
            f"{folder}: expected a run folder of {kind}, got {config.kind}; choose another --start-from"
        )
    return CentralOrigin(load_checkpoint(folder).get_weights(), config.log_range, config.stages())


def fits_decoder(origin: Origin, decoder: keras.Model) -> bool:
    """Whether ``decoder`` is the origin's or a deeper one of its width; otherwise it begins anew."""
    fresh = _named(decoder)
    return set(origin.decoder) <= set(fresh) and all(
        origin.decoder[name].shape == fresh[name].shape
        for name in ("queries/table", "expand/kernel")
        if name in origin.decoder
    )


def begin_with(origin: Origin, encoder: keras.Model, decoder: keras.Model, parts: np.ndarray) -> None:
    """Give ``encoder`` and ``decoder`` the weights of ``origin`` wherever it has any of that name.

    ``parts (n, n_time, width, n_sources)`` are companded training inputs by which a folded normalisation is
    measured anew.
    """
    for network, weights in ((encoder, origin.encoder), (decoder, origin.decoder)):
        for variable in network.weights:
            name, fresh = _name(variable), np.array(variable)
            if name == "latent/kernel":
                # Behind a Flatten: the channels are within the first axis.
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
    """``fresh`` with ``old`` in its corner, and nothing from new inputs to old outputs.

    A kernel's last two axes are its inputs and outputs (of a depthwise kernel, its channels and 1).
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
    """Set each batch normalisation so that it adds the folded bias and otherwise changes nothing."""
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
    """Kernels in Keras' layout and folded biases of an int8 ``.tflite``, as real numbers."""
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
        # (out, in) of a dense layer; (out, height, width, in) of a convolution; (1, height, width, c) of a
        # depthwise one.
        order = {True: (1, 0), False: (1, 2, 3, 0)}[values.ndim == 2]
        weights[f"{found[1]}/kernel"] = values.transpose(order)
        weights[f"{found[1]}/bias"] = real(bias, np.int32)
    return weights


def _named(network: keras.Model) -> dict[str, np.ndarray]:
    return {_name(variable): np.array(variable) for variable in network.weights}


def _name(variable: Any) -> str:
    """A variable's path from its layer on, whatever the networks around it are called."""
    return re.sub(r"^(?:device_encoder|fusion_decoder)(?:_\d+)?/", "", variable.path)
