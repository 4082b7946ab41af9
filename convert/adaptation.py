"""Adapt a released model to other ground: train its decoder on new data, keep its encoder.

Devices keep their encoder, so they need no update. The decoder is trained on the encoder's int8 latents of the new
gathers, with noise, field augmentation, device dropout and reduced rates as in the original training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from convert.errors import ConversionError
from convert.release import staged_release
from firmware_py.inference.bundle import copy_for_decoder, load_bundle
from firmware_py.inference.encoder import Encoder
from models.data.gathers import load_decimated
from models.inversion.decoder import load_decoder
from models.training.adaptation import Adaptation, LatentBatches, Split, adapt_decoder, write_decoder
from models.training.budget import Budget
from models.training.run import split_validation
from models.training.training import load_network


def adapt(
    model: Path,
    data: list[Path],
    out: Path,
    budget: Budget,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_load: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """Train the decoder of the released ``model`` on OpenFWI folders ``data`` and write a model to ``out``.

    The checkpoint is kept in ``out/adaptation`` until the training is done; calling again resumes it. One sample in 50
    is kept for validation and calibration.

    Raises:
        ConversionError: The adapted decoder has a larger error on the validation set than the old one. No model is
            written.
        DataError, TrainingError, BundleError, DecoderError: As in training and loading.
    """
    bundle = load_bundle(model / "bundle")
    decoder = load_decoder(model / "decoder")
    a = decoder.acquisition
    data_set = load_decimated(data, a, bundle.companding.thin, on_load)
    batches = LatentBatches(data_set, bundle.companding, Encoder(bundle).encode_parts, decoder.latent)
    validation, training = split_validation(len(batches))
    if not len(validation):
        raise ConversionError(
            f"adapt: expected at least 50 samples, of which one is to validate on, got {len(batches)}; add data"
        )
    learner = load_network(model / "decoder" / "decoder.keras")
    run = out / "adaptation"
    split = Split(training, validation)
    found = adapt_decoder(learner, batches, split, budget, run, on_progress)
    before, after = found.before["all"]["mae"], found.after["all"]["mae"]
    if after > before:
        raise ConversionError(
            f"adapt: the adapted decoder's maps are worse than the former one's, MAE {after:.4f} against {before:.4f} "
            "of the validation set; train longer, or add data"
        )
    with staged_release(out) as stage:
        sha256 = write_decoder(stage.decoder, learner, decoder, batches, split)
        metrics = {"adapted": {name: round(row["mae"], 5) for name, row in found.after.items()}}
        copy_for_decoder(bundle, stage.bundle, sha256, metrics)
        stage.publish()
    shutil.rmtree(run)
    return found
