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
from typing import Any

import numpy as np

from central.config import ModelSection
from central.recordings.gathers import FetchedGather, assemble
from central.recordings.given import keep_given
from central.storage.journal import Journal, JournalEntry
from central.storage.map_store import NewMap, Store, StoredMap
from central.verification.check_inputs import (
    CheckInputError,
    drawn_from,
    latent_model,
    model_of,
    read_gather,
    received_latents,
)
from firmware_py.inference.bundle import Bundle
from firmware_py.runtime.log import now_us
from models.inversion.refinement import LatentMisfit, OnIteration, Refined, refine
from models.inversion.waveform import invert
from physics.acquisition import Acquisition
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
    event: int,
    iterations: int,
    survey: int | None = None,
    gather: Path | None = None,
    on_iteration: OnIteration = lambda done, misfit, velocity_mps: None,
    prior: str = "blocky",
    fetched: bool = False,
) -> Outcome:
    """Refine the newest map of ``event`` that is a decoder's, and store it if its objective falls.

    ``gather`` is a .npy of the event's recording ``(S, T, R)``, taken in the place of the latents; the store keeps a
    copy. ``prior`` is that of its inversion. With ``fetched`` the recording is what the devices have sent; receivers
    without one count as dead. Raises ``CheckInputError``, ``StoreError`` and ``BundleError``.
    """
    began_s = time.monotonic()
    store = Store(data_dir)
    try:
        start = next(one for one in store.revisions(event, survey) if "refinement" not in one.provenance)
        _, bundle = model_of(start, models, data_dir)
        acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
        maps = (start.velocity_mps, start.uncertainty_mps)
        parts = assemble(data_dir, event, start.survey) if fetched else None
        recorded = parts.samples if parts else None
        if gather is not None:
            recorded = read_gather(gather, acquisition, dead_traces=True)
            keep_given(data_dir, start.survey, start.event, recorded)
        try:
            if recorded is None:
                with closing(Journal(data_dir)) as journal:
                    latents = drawn_from(start, store, journal)
                misfit = _latent_misfit(start, bundle, acquisition, latents)
                refined = refine(*maps, misfit, acquisition, iterations, on_iteration)
            else:
                refined = invert(*maps, recorded, acquisition, iterations, on_iteration, prior)
        except ModellingError as error:
            raise CheckInputError(f"event {event}: {error}") from None
        revision = None
        if refined.gained:
            # An earlier check of the starting map does not apply to this one.
            kept = {name: value for name, value in start.provenance.items() if name != "consistency"}
            provenance = {**kept, "refinement": _account(start, refined, iterations, gather, parts)}
            maps = (refined.velocity_mps, refined.uncertainty_mps)
            key = (start.survey, start.event, start.model_hash)
            last_record = store.drawn_through(start)
            revision = store.put_unless_newer(NewMap(key, last_record, start.partial, *maps, provenance))
    finally:
        store.close()
    overtaken = refined.gained and revision is None
    return Outcome(start, refined, revision, time.monotonic() - began_s, overtaken)


def _latent_misfit(
    start: StoredMap, bundle: Bundle, acquisition: Acquisition, latents: dict[int, JournalEntry]
) -> LatentMisfit:
    try:
        received, steps = received_latents(start, bundle, acquisition, latents)
    except CheckInputError as error:
        raise CheckInputError(f"{error}; refine by the recording, --gather FILE") from None
    spread = np.full(received.shape[1], bundle.output.scale)
    return LatentMisfit(latent_model(bundle, acquisition, spread), received, steps)


def _account(
    start: StoredMap, refined: Refined, iterations: int, gather: Path | None, parts: FetchedGather | None
) -> dict[str, Any]:
    return {
        "of_revision": start.revision,
        "by": "latents" if gather is None and parts is None else "gather",
        "gather": None if gather is None else str(gather.resolve()),
        **({"fetched": parts.provenance} if parts else {}),
        "iterations": refined.iterations,
        "iterations_asked": iterations,
        "gathers_modelled": refined.modelled,
        "objective": list(refined.objective),
        "misfit": list(refined.misfit),
        "misfit_unit": refined.unit,
        "settings": refined.settings,
        "refined_us": now_us(),
    }
