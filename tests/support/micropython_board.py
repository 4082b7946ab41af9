"""A board with the whole device on its flash, as `epic board install` would leave it, and the table of its encoder."""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from pathlib import Path

import numpy as np
from micropython_run import prepare

from firmware_py.inference.bundle import Bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.micropython.compand import thresholds_into

STEP = 1e-3
START = (Path(__file__).parents[2] / "firmware_py" / "micropython" / "main.py").read_text()


def counts_of(gathers: np.ndarray) -> np.ndarray:
    """Gathers as a digitiser gives them: int16 counts of ``STEP``."""
    return np.clip(np.rint(gathers / STEP), -32768, 32767).astype("<i2")


def receivers_of(bundle: Bundle, device: int) -> list[int]:
    return bundle.manifest["acquisition"]["device_receivers"][device]


def encoder_input(bundle: Bundle, part: np.ndarray) -> np.ndarray:
    """What a board gives its encoder for ``part (S, T, R)`` of counts, by its table of thresholds: a Linux device's
    input but where a sum is within float32's rounding of one (tests/firmware_py/test_micropython_parts.py)."""
    companding = bundle.companding
    table = array("i", [0] * 255)
    settings = (companding.k, companding.c, companding.thin)
    thresholds_into(table, settings, STEP, bundle.input.scale, bundle.input.zero_point)
    n_sources, n_time, n_receivers = part.shape
    blocks = part.astype(np.int64).reshape(n_sources, n_time // companding.thin, companding.thin, n_receivers)
    codes = np.full(bundle.input.shape[1:], bundle.input.zero_point, np.int8)
    codes[:, :n_receivers] = (np.searchsorted(table, blocks.sum(2), side="right") - 128).transpose(1, 2, 0)
    return codes


def make_board(
    board: Path, bundle: Bundle, device: int, counts: np.ndarray, secret: str, **more: dict
) -> list[bytes]:
    """A board that replays this device's part of ``counts (n, S, T, R)``; the latents that must arrive.

    ``more`` are further sections of ``device.json``.
    """
    board.mkdir()
    prepare(board, START)
    shutil.copytree(bundle.folder, board / "bundle")
    part = np.ascontiguousarray(counts[..., receivers_of(bundle, device)])
    np.save(board / "gathers.npy", part)
    (board / "device.mac").write_text(secret)
    config = {
        "device": device,
        "board": "node",
        "secret": "device.mac",
        "link": {"kind": "uart", "port": 1, "resend_ms": 500},
        "source": {"kind": "replay", "path": "gathers.npy", "step": STEP},
        **more,
    }
    (board / "device.json").write_text(json.dumps(config))
    encoder = Encoder(bundle)
    inputs = [encoder_input(bundle, one) for one in part]
    latents = [encoder.encode(one).tobytes() for one in inputs]
    keys = [hashlib.sha256(one.tobytes()).digest()[:8].hex() for one in inputs]
    table = {
        "input_bytes": int(np.prod(bundle.input.shape)),
        "scale": bundle.output.scale,
        "zero_point": bundle.output.zero_point,
        "latents": dict(zip(keys, (latent.hex() for latent in latents), strict=True)),
    }
    (board / "bundle" / "table.json").write_text(json.dumps(table))
    return latents
