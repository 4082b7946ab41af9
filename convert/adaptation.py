"""Adapt a released model to other ground: train its decoder on new data, keep its encoder.

Devices keep their encoder, so they need no update. The decoder is trained on the encoder's int8 latents of the new
gathers, with noise, field augmentation, device dropout and reduced rates as in the original training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.release import staged_release
from firmware_py.inference.bundle import copy_for_decoder, load_bundle
from firmware_py.inference.encoder import Encoder
from models.data.gathers import load_decimated
from models.inversion.decoder import Decoder, load_decoder
from models.training.adaptation import Adaptation, LatentBatches, Split, adapt_decoder, write_decoder
from models.training.budget import Budget
from models.training.run import split_validation
from models.training.run_config import write_json
from models.training.training import has_checkpoint, load_network

# Beside the checkpoint: what it is of.
REQUEST = "request.json"


def adapt(
    model: Path,
    data: list[Path],
    out: Path,
    budget: Budget,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_load: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """Train the decoder of the released ``model`` on OpenFWI folders ``data`` and write a model to ``out``.

    The checkpoint is kept in ``out/adaptation`` until the training is done; calling again with the same arguments
    resumes it, ``budget`` may be longer. One sample in 50 is kept for validation and calibration.

    Raises:
        ConversionError: The adapted decoder has a larger error on the validation set than the old one, or
            ``out/adaptation`` holds another adaptation. No model is written.
        DataError, TrainingError, BundleError, DecoderError: As in training and loading.
    """
    bundle = load_bundle(model / "bundle")
    decoder = load_decoder(model / "decoder")
    a, run = decoder.acquisition, out / "adaptation"
    wanted = _describe(decoder, data, budget)
    _check_same(run, wanted)
    data_set = load_decimated(data, a, bundle.companding.thin, on_load)
    batches = LatentBatches(data_set, bundle.companding, Encoder(bundle).encode_parts, decoder.latent)
    validation, training = split_validation(len(batches))
    if not len(validation):
        raise ConversionError(
            f"adapt: expected at least 50 samples, of which one is to validate on, got {len(batches)}; add data"
        )
    learner = load_network(model / "decoder" / "decoder.keras")
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / REQUEST, wanted)
    split = Split(training, validation)
    found = adapt_decoder(learner, batches, split, budget, run, on_progress)
    before, after = found.before["all"]["mae"], found.after["all"]["mae"]
    if after > before:
        # The budget is spent, so the next call must begin anew.
        shutil.rmtree(run)
        raise ConversionError(
            f"adapt: the adapted decoder's maps are worse than the former one's, MAE {after:.4f} against {before:.4f} "
            "of the validation set; begin again with more --minutes, or add data"
        )
    with staged_release(out) as stage:
        sha256 = write_decoder(stage.decoder, learner, decoder, batches, split)
        metrics = {"adapted": {name: round(row["mae"], 5) for name, row in found.after.items()}}
        copy_for_decoder(bundle, stage.bundle, sha256, metrics)
        stage.publish()
    shutil.rmtree(run)
    return found


def _describe(parent: Decoder, data: list[Path], budget: Budget) -> dict[str, Any]:
    """Return what an adaptation is of; its time is not part of that."""
    return {
        "parent_sha256": parent.sha256,
        "data": [str(folder.resolve()) for folder in data],
        "seed": budget.seed,
        "batch": budget.batch,
        "learning_rate": budget.learning_rate,
    }


def _check_same(run: Path, wanted: dict[str, Any]) -> None:
    """Raise ``ConversionError`` if the checkpoint in ``run`` is of another adaptation than ``wanted``."""
    if not has_checkpoint(run):
        return
    path = run / REQUEST
    found = json.loads(path.read_text()) if path.exists() else {}
    if differing := [name for name in wanted if found.get(name) != wanted[name]]:
        raise ConversionError(
            f"{run}: holds an interrupted adaptation with other {', '.join(differing)}; give the same model and "
            "options to go on with it, or remove the folder"
        )
