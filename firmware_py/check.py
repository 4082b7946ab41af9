"""``python -m firmware_py check``: whether a device would run as configured, without recording or sending."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from firmware_py.bundle import load_bundle
from firmware_py.config import NodeConfig
from firmware_py.encoder import Encoder
from firmware_py.node import open_source, select_receivers


def check(config: NodeConfig) -> dict[str, Any]:
    """Load the bundle, encode one silent gather, open the source; leaves the spool alone.

    Raises the errors of the bundle, the encoder and the source.
    """
    bundle = load_bundle(config.node.bundle)
    encoder = Encoder(bundle)
    selection = select_receivers(config, bundle)
    silence = np.zeros((*selection.shape[:2], len(selection.receivers)), np.float32)
    encoder.encode_recording(silence)
    started = time.perf_counter()
    latent = encoder.encode_recording(silence)
    encode_s = time.perf_counter() - started
    open_source(config, selection, 0)
    return {
        "device": config.node.device,
        "bundle": bundle.name,
        "model_hash": bundle.model_hash.hex(),
        "receivers": list(selection.receivers),
        "latent_bytes": latent.nbytes,
        "encode_s": round(encode_s, 6),
    }
