"""What conversion takes from a run folder: the trained networks and the data they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.parts import Parts
from convert.verify import HeldOut
from firmware_py.inference.companding import Companding
from models.data.gathers import ThinnedSet, load_thinned
from models.data.held_out import check_held_out
from models.training.run import split_watched
from models.training.run_config import RunConfig, read_config
from models.training.training import load_network
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

    Raises ``TrainingError`` without a whole ``config.json``, for a run that is not finished and for networks that
    cannot be read or hold NaN, ``ConversionError`` for a run of another network.
    """
    config = read_config(folder)
    if config.kind != "epic" or config.companding is None:
        raise ConversionError(
            f"{folder}: expected a run of `epic train epic`, got one of {config.kind!r}; "
            "only the distributed network has an encoder for devices"
        )
    decoder_file = folder / "decoder.keras"
    encoder = load_network(folder / "encoder.keras")
    load_network(decoder_file)
    return Run(
        folder=folder,
        config=config,
        acquisition=Acquisition.from_dict(config.acquisition),
        companding=Companding.from_dict(config.companding),
        encoder=encoder,
        decoder_file=decoder_file,
    )


def representative_parts(run: Run, data: ThinnedSet, training: np.ndarray) -> np.ndarray:
    """Companded parts of training gathers for calibration: ``(n, time, width, sources)`` float32.

    A seeded draw, the same for the same data, and the loudest gather among a larger draw.
    """
    drawn = np.random.default_rng(0).permutation(training)[:LOUDEST_AMONG]
    peaks = np.array([max(-float(data.gathers[i].min()), float(data.gathers[i].max())) for i in drawn])
    chosen = np.append(drawn[:REPRESENTATIVE_GATHERS], drawn[int(np.argmax(peaks))])
    return Parts(data.gathers[chosen], run.acquisition, run.companding)[:]


@dataclass(frozen=True)
class Seen:
    """Parts of what training saw: ``representative (n, time, width, sources)``, companded, for calibration,
    ``training`` and ``watched``, of which training learnt from the first alone; ``watched_maps (n, nz, nx)`` are
    normalised."""

    representative: np.ndarray
    training: Parts
    watched: Parts
    watched_maps: np.ndarray


def read_samples(run: Run, held_out: list[Path]) -> tuple[Seen, HeldOut]:
    """What training saw, and held-out samples.

    Held out are all samples under the folders ``held_out`` or, without any, those that training
    watched and did not learn from. Raises ``DataError`` or ``OpenFWIFileError`` for missing or damaged data,
    ``TrainingError`` for held-out data that were trained on and ``ConversionError`` when too few samples are left
    to measure by.
    """
    check_held_out(run.config, held_out)
    folders = [Path(name) for name in run.config.data]
    data = load_thinned(folders, run.acquisition, run.config.thin)
    watched, training = split_watched(len(data))
    some = np.random.default_rng(1).permutation(training)[:FAMILIAR_GATHERS]
    seen = Seen(
        representative_parts(run, data, training),
        Parts(data.gathers[some], run.acquisition, run.companding),
        Parts(data.gathers[watched], run.acquisition, run.companding),
        data.maps[watched],
    )
    if held_out:
        data = load_thinned(held_out, run.acquisition, run.config.thin)
        return seen, HeldOut(Parts(data.gathers, run.acquisition, run.companding), data.maps, data.families)
    if len(watched) == 0:
        raise ConversionError(
            f"the run's data hold {len(data)} samples, of which none was kept from training; "
            "give held-out data with --held-out"
        )
    return seen, HeldOut(seen.watched, data.maps[watched], data.families[watched])
