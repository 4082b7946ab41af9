"""What conversion takes from a run folder: the trained networks and the data they were trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.verify import HeldOut
from firmware_py.compand import Companding
from models.data import ThinnedSet, device_parts, load_thinned
from models.run import split_watched
from models.run_config import RunConfig, read_config
from physics.acquisition import Acquisition

REPRESENTATIVE_GATHERS = 100
# Among so many training gathers the loudest is looked for, so that the input scale spans them all.
LOUDEST_AMONG = 2000
# From the latents of so many training gathers the centre knows what is like them.
FAMILIAR_GATHERS = 2000


@dataclass(frozen=True)
class Run:
    """A finished EPIC run. ``encoder`` is a Keras model; the decoder stays a file until it is staged."""

    folder: Path
    config: RunConfig
    acquisition: Acquisition
    companding: Companding
    encoder: Any
    decoder_file: Path


def read_run(folder: Path) -> Run:
    """Read a run folder as ``epic train epic`` leaves it.

    Raises ``TrainingError`` without a ``config.json``, ``ConversionError`` for a run of another
    network, one that is not finished, or networks that cannot be read or hold NaN.
    """
    try:
        config = read_config(folder)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ConversionError(
            f"{folder / 'config.json'}: not the configuration of a run ({error}); copy the run again"
        ) from error
    if config.kind != "epic" or config.companding is None:
        raise ConversionError(
            f"{folder}: expected a run of `epic train epic`, got one of {config.kind!r}; "
            "only the distributed network has an encoder for devices"
        )
    files = {name: folder / f"{name}.keras" for name in ("encoder", "decoder")}
    for path in files.values():
        if not path.is_file():
            raise ConversionError(f"{path}: not found; the run has not finished, resume it with `epic train`")
    networks = {name: _load(path) for name, path in files.items()}
    return Run(
        folder=folder,
        config=config,
        acquisition=Acquisition.from_dict(config.acquisition),
        companding=Companding.from_dict(config.companding),
        encoder=networks["encoder"],
        decoder_file=files["decoder"],
    )


def representative_parts(run: Run, data: ThinnedSet, training: np.ndarray) -> np.ndarray:
    """Companded parts of training gathers for calibration: ``(n, time, width, sources)`` float32.

    A seeded draw, the same for the same data, and the loudest gather among a larger draw.
    """
    drawn = np.random.default_rng(0).permutation(training)[:LOUDEST_AMONG]
    peaks = np.array([max(-float(data.gathers[i].min()), float(data.gathers[i].max())) for i in drawn])
    chosen = np.append(drawn[:REPRESENTATIVE_GATHERS], drawn[int(np.argmax(peaks))])
    parts = device_parts(data.gathers[chosen], run.acquisition, run.companding)
    return parts.reshape(-1, *parts.shape[2:])


@dataclass(frozen=True)
class Seen:
    """Companded parts of what training saw: ``representative (n, time, width, sources)`` for calibration, ``training``
    and ``watched (n, n_devices, time, width, sources)``, of which training learnt from the first alone;
    ``watched_maps (n, nz, nx)`` are normalised."""

    representative: np.ndarray
    training: np.ndarray
    watched: np.ndarray
    watched_maps: np.ndarray


def read_samples(run: Run, held_out: list[Path]) -> tuple[Seen, HeldOut]:
    """What training saw, and held-out samples.

    Held out are all samples under the folders ``held_out`` or, without any, those that training
    watched and did not learn from. Raises ``DataError`` or ``OpenFWIFileError`` for missing data and
    ``ConversionError`` when too few samples are left to measure by.
    """
    folders = [Path(name) for name in run.config.data]
    data = load_thinned(folders, run.acquisition, run.config.thin)
    watched, training = split_watched(len(data))
    some = np.random.default_rng(1).permutation(training)[:FAMILIAR_GATHERS]
    seen = Seen(
        representative_parts(run, data, training),
        device_parts(data.gathers[some], run.acquisition, run.companding),
        device_parts(data.gathers[watched], run.acquisition, run.companding),
        data.maps[watched],
    )
    if held_out:
        clash = {folder.resolve() for folder in folders} & {folder.resolve() for folder in held_out}
        if clash:
            raise ConversionError(f"{min(clash)}: was trained on; give held-out data of other seeds")
        data = load_thinned(held_out, run.acquisition, run.config.thin)
        watched = np.arange(len(data))
    if len(watched) == 0:
        raise ConversionError(
            f"the run's data hold {len(data)} samples, of which none was kept from training; "
            "give held-out data with --held-out"
        )
    samples = HeldOut(
        parts=device_parts(data.gathers[watched], run.acquisition, run.companding),
        maps=data.maps[watched],
        families=data.families[watched],
    )
    if not (np.isfinite(samples.parts).all() and np.isfinite(samples.maps).all()):
        raise ConversionError("held-out samples: expected finite gathers and maps, got NaN or infinity")
    return seen, samples


def _load(path: Path) -> Any:
    import keras

    import models.network  # noqa: F401  registers the layers that a saved network names

    try:
        network = keras.models.load_model(path, compile=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{path}: expected a Keras network, got a file Keras refuses ({reason})"
        ) from error
    for weight, values in zip(network.weights, network.get_weights(), strict=True):
        if not np.isfinite(values).all():
            raise ConversionError(
                f"{path}: weight {weight.path} holds NaN or infinity; training has diverged, "
                "take an earlier checkpoint"
            )
    return network
