"""Several finished runs on the same held-out data: errors, bytes on the links, sizes, work on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from models.evaluation.evaluate import load_run, score_loaded
from models.networks.inversionnet import LAYOUTS, count_parameters
from models.networks.split import SplitInversionNet

FLOAT32_BYTES, FLOAT16_BYTES = 4, 2


@dataclass(frozen=True)
class Compared:
    """``families`` as of ``models.evaluation.scores.score``; bytes are payloads of all devices together,
    ``device_macs`` the multiplications and additions of one device for one event."""

    name: str
    families: dict[str, dict[str, float]]
    bytes_per_event: int
    parameters: int
    device_macs: int


def compare_runs(runs: list[Path], data: list[Path], missing: tuple[int, ...] = ()) -> list[Compared]:
    """Every run of ``runs`` on ``data``, in float; an InversionNet also split, with int8 activations.

    Raises what ``models.evaluation.evaluate.evaluate_run`` does.
    """
    rows = []
    for run in runs:
        found = load_run(run, data, missing)
        a, kind = found.held_out.acquisition, found.config.kind
        parameters = count_parameters(found.network)
        if kind in LAYOUTS:
            bytes_per_event, macs = FLOAT32_BYTES * int(np.prod(a.gather_shape)), 0
        elif kind == "federated":
            bytes_per_event = a.n_devices * FLOAT16_BYTES * a.n_depth * a.n_width
            macs = count_macs(found.parts["local"])
        else:
            encoder = found.parts["encoder"]
            bytes_per_event, macs = a.n_devices * encoder.output_shape[-1], count_macs(encoder)
        rows.append(Compared(run.name, score_loaded(found, found.network), bytes_per_event, parameters, macs))
        if kind == "inversionnet":
            split = SplitInversionNet(found.network, a)
            sent = a.n_devices * split.bytes_per_device
            families = score_loaded(found, split)
            rows.append(Compared(f"{run.name}, split", families, sent, parameters, count_macs(split.device)))
    return rows


def count_macs(network: keras.Model) -> int:
    """Multiplications and additions of the convolutions and dense layers for one sample; the rest is folded into them
    on a device, or of no weight beside them."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, layers.Conv2DTranspose):
            places = layer.input.shape[1:3]
        elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            places = layer.output.shape[1:3]
        elif isinstance(layer, layers.Dense):
            places = ()
        else:
            continue
        total += int(np.prod(places)) * int(np.prod(layer.kernel.shape))
    return total
