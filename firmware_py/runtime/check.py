"""Check a device's configuration without recording or sending: ``python -m firmware_py check``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.links.registry import read_keys
from firmware_py.runtime.config import NodeConfig
from firmware_py.runtime.factory import open_source, select_receivers
from firmware_py.updates.archive import read_verify_key
from firmware_py.updates.slots import bundle_in_use


def check(config: NodeConfig) -> dict[str, Any]:
    """Read the keys, load the bundle, encode one silent gather and open the source. The spool is not touched.

    Raises the errors of the keys, the bundle, the encoder, the source and the signing key.
    """
    read_keys(config.link)
    folder = config.node.bundle
    if config.update:
        read_verify_key(config.update.key)
        folder = bundle_in_use(config.node.state_dir / "slots", folder)
    bundle = load_bundle(folder)
    encoder = Encoder(bundle, config.node.accelerator)
    selection = select_receivers(config, bundle)
    silence = np.zeros((*selection.shape[:2], len(selection.receivers)), np.float32)
    encoder.encode_recording(silence)
    started = time.perf_counter()
    latent = encoder.encode_recording(silence)
    encode_s = time.perf_counter() - started
    open_source(config, selection)
    return {
        "device": config.node.device,
        "bundle": bundle.name,
        "model_hash": bundle.model_hash.hex(),
        "encoded_by": config.node.accelerator or "processor",
        "receivers": list(selection.receivers),
        "latent_bytes": latent.nbytes,
        "encode_s": round(encode_s, 6),
    }
