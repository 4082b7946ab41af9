"""Bundles: of untrained encoders of three sizes, made as `epic convert` makes them, and a tiny one to install."""

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from board_machine import BoardMachine
from tiny import ENCODER, bundle_fields

from central.security.keys import new_keys
from firmware_py.inference.bundle import create_bundle

# Filters, kernel and stride (time, receivers) of each convolution.
SIZES = {
    # What the smallest board is meant for.
    "small": {
        "n_time": 100,
        "latent": 64,
        "stages": ((16, (5, 3), (2, 1)), (24, (3, 3), (2, 2)), (32, (3, 3), (2, 2))),
    },
    # Few weights and long feature maps: an arena between the 496 KiB of one camera and the 512 KiB of another.
    "long": {
        "n_time": 400,
        "latent": 64,
        "stages": ((72, (3, 3), (1, 1)), (72, (3, 3), (2, 2)), (24, (3, 3), (3, 2))),
    },
    # A short arena and a weight for every pair of 4,200 features and 256 latents: over 1 MiB of file.
    "heavy": {"n_time": 100, "latent": 256, "stages": ((24, (7, 3), (4, 2)),)},
}


class Bundles:
    """``bundles[name]`` is the folder of one of ``SIZES``, with the measured arena stated in the manifest.

    A conversion imports TensorFlow, so each is done once, for all test processes of a run.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, name: str) -> Path:
        folder = self._root / f"encoder-{name}" / "bundle"
        with (self._root / f"encoder-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Written completely or not at all.
            if not folder.exists():
                make_bundle(folder, SIZES[name])
        return folder


def make_bundle(folder: Path, size: dict) -> None:
    import keras
    from quantising import quantise_here

    from boards.fit import tflm
    from boards.fit.graph import read_graph
    from models.networks.encoder import EncoderConfig, Stage, build_encoder

    keras.utils.set_random_seed(0)
    stages = tuple(Stage(*stage) for stage in size["stages"])
    config = EncoderConfig(size["n_time"], 14, 5, size["latent"], stages, bottleneck=24)
    parts = np.random.default_rng(0).normal(scale=0.3, size=(2, config.n_time, 14, 5)).astype(np.float32)
    model = quantise_here(build_encoder(config), parts)
    graph = read_graph(model)
    fields = {
        side: {"shape": list(tensor.shape), "scale": tensor.scale, "zero_point": tensor.zero_point}
        for side, tensor in (("input", graph.inputs[0]), ("output", graph.outputs[0]))
    }
    fields |= {"companding": {"k": 20.0, "c": 7.6, "thin": 1000 // config.n_time}}
    fields |= {"arena_bytes": tflm.measure_arena_bytes(model)}
    create_bundle(folder, model, fields)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    pytest.importorskip("keras", reason="needs the train extra to make an encoder")
    pytest.importorskip("tflite_micro", reason="needs the extra tflm (the TFLite-Micro interpreter)")
    root = tmp_path_factory.getbasetemp()
    return Bundles(root.parent if "PYTEST_XDIST_WORKER" in os.environ else root)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A folder with a tiny ``bundle`` and the ``keys`` of device 0."""
    folder = tmp_path_factory.mktemp("parts")
    create_bundle(folder / "bundle", ENCODER, bundle_fields())
    new_keys(folder / "keys", "device-0")
    return folder


@pytest.fixture
def machine(tmp_path):
    """Makes a board; ``BoardMachine`` says of what kind."""
    made = []

    def make(**kind):
        made.append(BoardMachine(tmp_path, **kind))
        return made[-1]

    yield make
    for one in made:
        one.close()
