"""What a chaos run is made of: a bundle, recordings, and the latents that must arrive of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny import ENCODER, bundle_fields

from firmware_py.inference.bundle import Bundle, create_bundle, load_bundle
from firmware_py.inference.encoder import Encoder
from testbed.run import find_model
from testbed.samples import load_samples

N_DEVICES = 5
TINY_GATHERS = 100


@dataclass(frozen=True)
class World:
    """``gathers (n, S, T, R)`` are replayed until there are enough events; event e is gather (e - 1) mod n.

    ``decoder`` is the folder of the released one, None where the centre is to have none.
    """

    bundle: Bundle
    decoder: Path | None
    gathers: np.ndarray

    @property
    def n_devices(self) -> int:
        return len(self.bundle.manifest["acquisition"]["device_receivers"])

    def latents(self) -> list[list[bytes]]:
        """By device, then gather: what its encoder makes of its part, computed here."""
        encoder = Encoder(self.bundle)
        groups = self.bundle.manifest["acquisition"]["device_receivers"]
        return [
            [encoder.encode_recording(gather[:, :, group]).tobytes() for gather in self.gathers]
            for group in groups
        ]


def tiny_world(folder: Path) -> World:
    """Five devices with an encoder of 8 values, and noise to record."""
    fields = bundle_fields()
    fields["acquisition"] = {
        **fields["acquisition"],
        "receiver_cells": list(range(3 * N_DEVICES)),
        "device_receivers": [[3 * d, 3 * d + 1, 3 * d + 2] for d in range(N_DEVICES)],
    }
    gathers = np.random.default_rng(0).normal(size=(TINY_GATHERS, 2, 100, 3 * N_DEVICES)).astype(np.float32)
    return World(create_bundle(folder / "bundle", ENCODER, fields), None, gathers)


def released_world(folder: Path) -> World:
    """The released model, and the gathers that are shipped with the testbed."""
    model = find_model(None)
    shutil.copytree(model.bundle, folder / "bundle")
    gathers = np.stack([sample.gather for sample in load_samples()])
    return World(load_bundle(folder / "bundle"), model.decoder, gathers)
