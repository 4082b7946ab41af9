"""Convert a run folder to a released model; if a step fails, nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boards.fit.budget import SMALLEST, Limits, Verdict, limits_of
from boards.fit.check import assess
from boards.fit.epicnn import EpicnnError, compile_encoder, read_memory
from boards.fit.graph import Graph, GraphError
from boards.profile import Board
from convert.errors import BudgetError, ConversionError, QuantisationError
from convert.int8_encoder import Int8Encoder
from convert.quantise import quantise
from convert.release import Stage, staged_release
from convert.run_folder import Run, Seen, read_run, read_samples
from convert.verify import Verification, check_gate, float_latents, golden_vectors, int8_latents, verify
from models.data.gathers import DataError
from models.errors import TrainingError
from models.inversion.decoder import Decoder, LatentFormat, calibrate_uncertainty, load_decoder, save_decoder
from models.inversion.ood import OodError, OodStatistics, measure_ood
from models.networks.nested_latent import prefix_rates
from physics.acquisition import AcquisitionError
from physics.files.openfwi_files import OpenFWIFileError


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        arena_bytes: None if TFLite-Micro is not installed.
        accelerator: Result for the target's accelerator (``boards.fit.check.Assessment``); None if it has none.
        micropython: Size and buffers on stock MicroPython, or the reason why the encoder cannot run there.
    """

    out: Path
    target: str
    model_hash: str
    graph: Graph
    arena_bytes: int | None
    arena_note: str
    verdicts: tuple[Verdict, ...]
    verification: Verification
    micropython: str
    accelerator: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "out": str(self.out),
            "target": self.target,
            "model_hash": self.model_hash,
            "model_bytes": self.graph.file_bytes,
            "arena_bytes": self.arena_bytes,
            "arena_note": self.arena_note,
            "operators": self.graph.operator_counts,
            "budget": [{"question": v.question, "fits": v.fits, "said": v.said} for v in self.verdicts],
            "accelerator": self.accelerator,
            "micropython": self.micropython,
            **self.verification.to_dict(),
        }


def convert_run(
    run_folder: Path,
    out: Path,
    board: Board | None = None,
    held_out: tuple[Path, ...] = (),
    c_array: bool = False,
    encoder: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Convert the run in ``run_folder`` and write ``out/bundle`` and ``out/decoder``.

    Args:
        board: Board that sets the budget. Default: the smallest board (256 KiB model, 192 KiB arena). The output of its
            accelerator's compiler is added as ``encoder_vela.tflite`` or ``encoder_edgetpu.tflite``.
        held_out: Folders of OpenFWI test data to measure on. Default: the samples kept out of training.
        encoder: Keras file of another encoder for the run's decoder.
        c_array: Add ``encoder.c`` and ``encoder.h`` to the bundle. They hold the compiled model if there is one.

    Raises:
        ConversionError: Or its subclasses ``QuantisationError`` and ``BudgetError``. ``out`` is not changed.
    """
    limits = SMALLEST if board is None else limits_of(board)
    try:
        on_step("reading run")
        run = read_run(run_folder, encoder)
        on_step("reading data")
        seen, samples = read_samples(run, list(held_out))
    except (TrainingError, DataError, OpenFWIFileError, AcquisitionError) as error:
        raise ConversionError(str(error)) from error
    int8 = _quantise_within(limits, run, seen, on_step)
    found = int8.assessment
    with staged_release(out) as stage:
        on_step("measuring OOD statistics")
        decoder = _stage_decoder(stage, run, seen, int8)
        verification = verify(run.encoder, int8, decoder, samples, on_step)
        check_gate(verification)
        vectors = golden_vectors(int8, samples)
        epicnn, micropython = _for_micropython(int8.model, vectors[0])
        on_step("writing")
        metrics = {
            **verification.to_dict(),
            "arena": found.arena_source,
            "operators": found.graph.operator_counts,
            "budget": limits.target,
            "accelerator": found.accelerator,
            "micropython": micropython,
        }
        stage.write_bundle(run, int8, decoder, metrics, vectors, epicnn, c_array)
        stage.publish()
    return Conversion(
        out=out,
        target=limits.target,
        model_hash=int8.hash,
        graph=found.graph,
        arena_bytes=found.arena_bytes,
        arena_note=found.arena_source,
        verdicts=found.verdicts,
        accelerator=found.accelerator,
        micropython=micropython,
        verification=verification,
    )


def _quantise_within(limits: Limits, run: Run, seen: Seen, on_step: Callable[[str], None]) -> Int8Encoder:
    """Convert the encoder to int8 and check it against the target's limits."""
    on_step("quantising")
    float_latents(run.encoder, seen.representative)
    model = quantise(run.encoder, seen.representative)
    on_step("measuring arena")
    try:
        found = assess(model, limits)
    except GraphError as error:
        raise QuantisationError(str(error)) from error
    _require(found.verdicts)
    return Int8Encoder(model, found)


def _stage_decoder(stage: Stage, run: Run, seen: Seen, int8: Int8Encoder) -> Decoder:
    """Write the decoder with its OOD statistics and calibrated uncertainty, and load it."""
    training, validation = (int8_latents(int8, parts) for parts in (seen.training, seen.validation))
    prefixes = prefix_rates(training.shape[-1]) if run.config.budget.get("ordered") else ()
    save_decoder(
        stage.decoder,
        run.decoder_file,
        LatentFormat(int8.hash, *int8.output_quantisation, prefixes),
        run.acquisition,
        _ood_statistics(training, validation),
    )
    decoder = load_decoder(stage.decoder)
    calibrate_uncertainty(decoder, validation, seen.validation_maps)
    return decoder


def _for_micropython(model: bytes, inputs: np.ndarray) -> tuple[bytes | None, str]:
    """Compile the encoder for stock MicroPython; return it (None if it cannot run there) and a note for the user."""
    try:
        epicnn = compile_encoder(model, inputs[:1])
    except EpicnnError as error:
        return None, f"not compiled: {error}"
    return epicnn, f"{len(epicnn):,} B, {read_memory(epicnn).total:,} B of buffers"


def _ood_statistics(training: np.ndarray, validation: np.ndarray) -> OodStatistics | None:
    """Measure OOD statistics on the int8 latents of training gathers; None if there are too few."""
    try:
        return measure_ood(training, validation)
    except OodError:
        return None


def _require(verdicts: tuple[Verdict, ...]) -> None:
    """Raise an error for the first limit exceeded, with a remedy."""
    for verdict in verdicts:
        if verdict.fits is False:
            kind = BudgetError if verdict.question in ("model file", "tensor arena") else QuantisationError
            raise kind(f"{verdict.question}: {verdict.said}; {verdict.advice}")
