"""Gather what a refinement needs from the centre's store, and make the stored map of its result.

Nothing here loads TensorFlow, so a worker that waits for jobs stays small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from central.config import ModelSection
from central.recordings.gathers import assemble
from central.recordings.given import keep_given
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store, StoredMap
from central.verification.check_inputs import (
    MISFIT,
    CheckInputError,
    latents_of_map,
    model_of,
    read_gather,
    received_latents,
)
from firmware_py.inference.bundle import load_bundle
from firmware_py.runtime.log import now_us
from physics.acquisition import Acquisition

if TYPE_CHECKING:
    from models.inversion.refinement import Refined

LATENTS, GATHER, FETCHED = SOURCES = ("latents", "gather", "fetched")


@dataclass(frozen=True)
class RefinementRequest:
    """Refinement that an operator asks for.

    Attributes:
        source: What the map is fitted to: ``LATENTS``, a given recording (``GATHER``) or the fetched one (``FETCHED``).
        gather: File of the given recording, ``(S, T, R)`` as .npy.
        prior: Of the inversion of a recording.
    """

    event: int
    survey: int | None
    iterations: int
    source: str = LATENTS
    gather: Path | None = None
    prior: str = "blocky"


@dataclass(frozen=True)
class Inputs:
    """Inputs of a refinement. They can be pickled, so that another process or machine does the work.

    Attributes:
        start: Newest map of the event that is a decoder's.
        last_record: Id of the last record of ``start``.
        bundle: Folder of the devices' bundle.
        recorded: Gather ``(S, T, R)``; None for a refinement by latents.
        latents: Received latents and their steps, ``(n_devices, latent)`` each; None for an inversion of a recording.
        fetched: Provenance of a fetched recording.
    """

    request: RefinementRequest
    start: StoredMap
    last_record: int
    bundle: Path
    recorded: np.ndarray | None
    latents: tuple[np.ndarray, np.ndarray] | None
    fetched: dict[str, Any] | None

    @property
    def acquisition(self) -> Acquisition:
        return Acquisition.from_dict(load_bundle(self.bundle).manifest["acquisition"])

    def sha256(self) -> str:
        """Return the hash of all that the refined map depends on."""
        arrays = (self.start.velocity_mps, self.start.uncertainty_mps, self.recorded, *(self.latents or ()))
        options = (self.request.source, self.request.iterations, self.request.prior)
        return _sha256(
            *(one for one in arrays if one is not None), np.frombuffer(repr(options).encode(), "u1")
        )


def read_inputs(
    data_dir: Path,
    models: Sequence[ModelSection],
    request: RefinementRequest,
    recorded: np.ndarray | None = None,
) -> Inputs:
    """Read the inputs of a refinement. The store keeps a copy of a given recording.

    Args:
        models: Those of the configuration.
        recorded: The given recording, if it has been read already.

    Raises:
        CheckInputError: An input is missing or does not match.
        StoreError: The store cannot be read, or lacks the event or its recording.
        BundleError: The bundle is damaged.
    """
    latents = parts = None
    with closing(Store(data_dir)) as store:
        survey = store.revisions(request.event, request.survey)[0].survey
        start = store.newest_decoded(survey, request.event)
        if start is None:
            raise CheckInputError(f"event {request.event}: none of its maps is a decoder's")
        _, bundle = model_of(start, models, data_dir)
        acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
        if request.source == FETCHED:
            parts = assemble(data_dir, request.event, start.survey)
            recorded = parts.samples
        elif request.source == GATHER and recorded is None:
            assert request.gather
            recorded = read_gather(request.gather, acquisition)
            keep_given(data_dir, start.survey, start.event, recorded)
        elif request.source == LATENTS:
            with closing(Journal(data_dir)) as journal:
                found = latents_of_map(start, store, journal)
            try:
                latents = received_latents(start, bundle, acquisition, found)
            except CheckInputError as error:
                raise CheckInputError(f"{error}; refine by the recording, --gather FILE") from None
        last_record = store.decoded_through(start)
    fetched = parts.provenance if parts else None
    return Inputs(request, start, last_record, bundle.folder, recorded, latents, fetched)


def recording_sha256(recorded: np.ndarray) -> str:
    """Return the hash of a recording's samples ``(S, T, R)``."""
    return _sha256(recorded)


def new_map(inputs: Inputs, refined: Refined) -> NewMap:
    """Return the map to store, with the method in its provenance under ``refinement``."""
    start, request = inputs.start, inputs.request
    account = {
        "of_revision": start.revision,
        "by": "latents" if request.source == LATENTS else "gather",
        "gather": None if request.gather is None else str(request.gather.resolve()),
        **({"fetched": inputs.fetched} if inputs.fetched else {}),
        "iterations": refined.iterations,
        "iterations_asked": request.iterations,
        "gathers_modelled": refined.modelled,
        "objective": list(refined.objective),
        "misfit": list(refined.misfit),
        "misfit_unit": refined.unit,
        "settings": refined.settings,
        "refined_us": now_us(),
    }
    # An earlier check of the starting map does not apply to this one.
    kept = {name: value for name, value in start.provenance.items() if name not in ("consistency", "flags")}
    if flags := [flag for flag in start.provenance.get("flags", []) if not flag.startswith(f"{MISFIT}:")]:
        kept["flags"] = flags
    return NewMap(
        (start.survey, start.event, start.model_hash),
        inputs.last_record,
        start.partial,
        refined.velocity_mps,
        refined.uncertainty_mps,
        {**kept, "refinement": account},
    )


def _sha256(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
