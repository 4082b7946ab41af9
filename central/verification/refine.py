"""Refine a stored map by waveform inversion, from its latents or from the recording.

The refined map becomes a new revision of its event, with the method in its provenance under ``refinement``. A
refinement by latents keeps the starting map's uncertainty; an inversion of a recording estimates its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from central.config import ModelSection
from central.storage.map_store import Store, StoredMap
from central.verification.check_inputs import CheckInputError, latent_model
from central.verification.refine_inputs import Inputs, RefinementRequest, new_map, read_inputs
from firmware_py.inference.bundle import load_bundle
from models.inversion.refinement import LatentMisfit, OnIteration, Refined, refine
from models.inversion.waveform import invert
from physics.errors import ModellingError


@dataclass(frozen=True)
class Outcome:
    """Result of a refinement.

    ``revision`` is that of the stored map. It is None if the objective did not fall, or if the start was ``overtaken``:
    a map of later latents was decoded meanwhile, and stays the event's newest.
    """

    start: StoredMap
    refined: Refined
    revision: int | None
    elapsed_s: float
    overtaken: bool = False


def refine_event(
    data_dir: Path,
    models: Sequence[ModelSection],
    request: RefinementRequest,
    on_iteration: OnIteration = lambda done, misfit, velocity_mps: None,
) -> Outcome:
    """Refine the event's newest map that is a decoder's, and store it if its objective falls.

    Receivers without a recording count as dead. Raises the errors of ``read_inputs`` and ``compute``.
    """
    began_s = time.monotonic()
    inputs = read_inputs(data_dir, models, request)
    refined = compute(inputs, on_iteration)
    revision = None
    if refined.gained:
        with closing(Store(data_dir)) as store:
            revision = store.put_unless_newer(new_map(inputs, refined))
    overtaken = refined.gained and revision is None
    return Outcome(inputs.start, refined, revision, time.monotonic() - began_s, overtaken)


def compute(
    inputs: Inputs,
    on_iteration: OnIteration = lambda done, misfit, velocity_mps: None,
    resume_from: tuple[np.ndarray, int] | None = None,
) -> Refined:
    """Refine the map; nothing is read from the store, and nothing written.

    Args:
        resume_from: Map ``(nz, nx)`` and iterations done of an interrupted inversion of a recording. A refinement by
            latents takes seconds and begins anew.

    Raises:
        CheckInputError: The modelling cannot be set up.
        BundleError: The bundle is damaged.
    """
    request, acquisition = inputs.request, inputs.acquisition
    maps = (inputs.start.velocity_mps, inputs.start.uncertainty_mps)
    try:
        if inputs.latents is not None:
            misfit = _latent_misfit(inputs)
            return refine(*maps, misfit, acquisition, request.iterations, on_iteration)
        assert inputs.recorded is not None
        given = (*maps, inputs.recorded, acquisition, request.iterations, on_iteration, request.prior)
        if resume_from and (resumed := invert(*given, resume_from)).gained:
            return resumed
        # A better map before the interruption is lost, so an inversion that gained nothing after it begins anew.
        return invert(*given)
    except ModellingError as error:
        raise CheckInputError(f"event {request.event}: {error}") from None


def _latent_misfit(inputs: Inputs) -> LatentMisfit:
    assert inputs.latents is not None
    received, steps = inputs.latents
    bundle = load_bundle(inputs.bundle)
    spread = np.full(received.shape[1], bundle.output.scale)
    return LatentMisfit(latent_model(bundle, inputs.acquisition, spread), received, steps)
