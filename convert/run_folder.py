"""Read the trained networks of a run folder and the data that they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.encoder import check_encoder
from convert.errors import ConversionError
from convert.parts import Parts
from convert.verify import HeldOut
from firmware_py.inference.companding import Companding
from models.data.gathers import DecimatedSet, load_decimated
from models.data.held_out import check_held_out
from models.inversion.ood import OOD_GATHERS
from models.training.run import split_validation
from models.training.run_config import RunConfig, read_config
from models.training.training import load_network
from physics.acquisition import Acquisition

REPRESENTATIVE_GATHERS = 100
# Training gathers searched for the loudest one, so that the input scale covers all.
LOUDEST_AMONG = 2000


@dataclass(frozen=True)
class Run:
    """A finished EPIC run. ``encoder`` is a Keras model; the decoder stays a file until it is staged."""

    folder: Path
    config: RunConfig
    acquisition: Acquisition
    companding: Companding
    encoder: Any
    decoder_file: Path


def read_run(folder: Path, encoder_file: Path | None = None) -> Run:
    """Read a run folder that ``epic train epic`` wrote.

    Args:
        encoder_file: Keras file of another encoder, for the run's survey, companding and decoder. Default: the run's.

    Raises:
        TrainingError: ``config.json`` is missing or damaged, the run is not finished, or its networks cannot be read or
            hold NaN.
        ConversionError: The run is of another kind of network, or the encoder does not fit it.
    """
    config = read_config(folder)
    if config.kind != "epic" or config.companding is None:
        raise ConversionError(
            f"{folder}: expected a run of `epic train epic`, got one of {config.kind!r}; "
            "only the distributed network has an encoder for devices"
        )
    decoder_file = folder / "decoder.keras"
    if encoder_file is not None and not encoder_file.is_file():
        raise ConversionError(f"{encoder_file}: not found; expected a Keras file (.keras) with your encoder")
    encoder_file = encoder_file or folder / "encoder.keras"
    encoder, decoder = load_network(encoder_file), load_network(decoder_file)
    acquisition = Acquisition.from_dict(config.acquisition)
    part_shape = (
        acquisition.n_time // config.thin,
        acquisition.max_device_receivers,
        acquisition.n_sources,
    )
    check_encoder(encoder, encoder_file, part_shape, int(decoder.input["latents"].shape[-1]))
    return Run(
        folder=folder,
        config=config,
        acquisition=acquisition,
        companding=Companding.from_dict(config.companding),
        encoder=encoder,
        decoder_file=decoder_file,
    )


def representative_parts(run: Run, data: DecimatedSet, training: np.ndarray) -> np.ndarray:
    """Return companded parts of training gathers for calibration: ``(n, time, width, sources)`` float32.

    The sample is drawn with a fixed seed, so the same data give the same parts. It includes the loudest gather of a
    larger sample.
    """
    drawn = np.random.default_rng(0).permutation(training)[:LOUDEST_AMONG]
    peaks = np.array([max(-float(data.gathers[i].min()), float(data.gathers[i].max())) for i in drawn])
    chosen = np.append(drawn[:REPRESENTATIVE_GATHERS], drawn[int(np.argmax(peaks))])
    return Parts(data.gathers[chosen], run.acquisition, run.companding)[:]


@dataclass(frozen=True)
class Seen:
    """Companded parts of the training data.

    Attributes:
        representative: ``(n, time, width, sources)``, for calibration.
        training: Parts used in training.
        validation: Parts of the validation set.
        validation_maps: Normalised maps of the validation set, ``(n, nz, nx)``.
    """

    representative: np.ndarray
    training: Parts
    validation: Parts
    validation_maps: np.ndarray


def read_samples(run: Run, held_out: list[Path]) -> tuple[Seen, HeldOut]:
    """Read training data and test data.

    The test data are all samples under the folders ``held_out``. Without folders, the validation set is used.

    Raises:
        DataError, OpenFWIFileError: Data are missing or damaged.
        TrainingError: The test data were used in training.
        ConversionError: There are too few samples to measure on.
    """
    check_held_out(run.config, held_out)
    folders = [Path(name) for name in run.config.data]
    data = load_decimated(folders, run.acquisition, run.config.thin)
    validation, training = split_validation(len(data))
    some = np.random.default_rng(1).permutation(training)[:OOD_GATHERS]
    seen = Seen(
        representative_parts(run, data, training),
        Parts(data.gathers[some], run.acquisition, run.companding),
        Parts(data.gathers[validation], run.acquisition, run.companding),
        data.maps[validation],
    )
    if held_out:
        data = load_decimated(held_out, run.acquisition, run.config.thin)
        return seen, HeldOut(Parts(data.gathers, run.acquisition, run.companding), data.maps, data.families)
    if len(validation) == 0:
        raise ConversionError(
            f"the run's data hold {len(data)} samples, of which none was kept from training; "
            "give held-out data with --held-out"
        )
    return seen, HeldOut(seen.validation, data.maps[validation], data.families[validation])
