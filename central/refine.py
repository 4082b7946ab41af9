"""A stored map refined by waveform inversion, from the latents it was drawn from or from the recording itself.

The refined map becomes a new revision of its event, with what was done in its provenance under ``refinement``. Its
uncertainty is that of the map it began with: how much is known after is not computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.config import ModelSection
from central.journal import Journal, Journalled
from central.store import NewMap, Store, StoredMap
from firmware_py.bundle import Bundle, load_bundle
from firmware_py.compand import dequantise
from firmware_py.log import now_us
from models.float_encoder import FloatEncoderError, float_encoder
from models.latent_model import LatentModel
from models.refinement import GatherMisfit, LatentMisfit, Misfit, Refined, refine
from physics.acquisition import Acquisition
from physics.modelling import ModellingError


class RefineError(ValueError):
    """An event that cannot be refined as asked."""


@dataclass(frozen=True)
class Outcome:
    """What came of it: ``revision`` of the map that was stored, None where the objective did not fall."""

    start: StoredMap
    refined: Refined
    revision: int | None
    elapsed_s: float


def refine_event(
    data_dir: Path,
    models: Sequence[ModelSection],
    event: int,
    iterations: int,
    survey: int | None = None,
    gather: Path | None = None,
    on_iteration: Callable[[int, float], None] = lambda done, misfit: None,
) -> Outcome:
    """Refine the newest map of ``event`` that is a decoder's, and store it if its objective falls.

    ``gather`` is a .npy of the event's recording ``(S, T, R)``, taken in the place of the latents. Raises
    ``RefineError``, ``StoreError``, ``BundleError``, and ``ImportError`` without Deepwave.
    """
    began_s = time.monotonic()
    store = Store(data_dir)
    try:
        start = next(one for one in store.revisions(event, survey) if "refinement" not in one.provenance)
        key = (start.survey, start.event, start.model_hash)
        last_record = store.emitted_through(key)
        bundle = _bundle_of(start, models)
        acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
        misfit: Misfit
        if gather is None:
            misfit = _latent_misfit(start, bundle, acquisition, _latents(data_dir, key, last_record))
        else:
            misfit = GatherMisfit(read_gather(gather, acquisition), bundle.companding)
        try:
            refined = refine(
                start.velocity_mps, start.uncertainty_mps, misfit, acquisition, iterations, on_iteration
            )
        except ModellingError as error:
            raise RefineError(f"event {event}: {error}") from None
        revision = None
        if refined.gained:
            provenance = {**start.provenance, "refinement": _account(start, refined, iterations, gather)}
            maps = (refined.velocity_mps, start.uncertainty_mps)
            (revision,) = store.put([NewMap(key, last_record, start.partial, *maps, provenance)])
    finally:
        store.close()
    return Outcome(start, refined, revision, time.monotonic() - began_s)


def read_gather(path: Path, acquisition: Acquisition) -> np.ndarray:
    """One recording ``(S, T, R)`` float32 of a .npy file. Raises ``RefineError``."""
    try:
        gather = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RefineError(f"{path}: cannot be read as .npy ({error})") from None
    if not isinstance(gather, np.ndarray) or gather.shape != acquisition.gather_shape:
        got = getattr(gather, "shape", "an archive")
        raise RefineError(
            f"{path}: expected one gather {acquisition.gather_shape} (sources, samples, receivers), got {got}"
        )
    if gather.dtype.kind not in "fiu" or not np.isfinite(gather).all():
        raise RefineError(f"{path}: expected finite numbers; mend the recording")
    return gather.astype(np.float32)


def _bundle_of(start: StoredMap, models: Sequence[ModelSection]) -> Bundle:
    bundles = [load_bundle(section.bundle) for section in models]
    for bundle in bundles:
        if bundle.model_hash == start.model_hash:
            return bundle
    known = ", ".join(bundle.model_hash.hex() for bundle in bundles)
    raise RefineError(
        f"event {start.event}: drawn from latents of encoder {start.model_hash.hex()}, and [[model]] has {known}; "
        "add the bundle that the devices ran"
    )


def _latents(data_dir: Path, key: tuple[int, int, bytes], last_record: int) -> dict[int, Journalled]:
    """The latents that the map was drawn from: of each device the newest in its own order."""
    journal = Journal(data_dir)
    try:
        found: dict[int, Journalled] = {}
        for latent in journal.of_event(key):
            held = found.get(latent.device)
            if latent.id <= last_record and (held is None or held.order < latent.order):
                found[latent.device] = latent
        return found
    finally:
        journal.close()


def _latent_misfit(
    start: StoredMap, bundle: Bundle, acquisition: Acquisition, latents: dict[int, Journalled]
) -> LatentMisfit:
    length, scale, zero_point = bundle.output.shape[1], bundle.output.scale, bundle.output.zero_point
    received = np.zeros((acquisition.n_devices, length), np.float32)
    steps = np.full(received.shape, np.inf)
    for device, latent in latents.items():
        if device < acquisition.n_devices and bundle.coding.is_latent(latent.payload):
            rate = bundle.coding.rate(len(latent.payload))
            received[device] = dequantise(bundle.coding.unpack(latent.payload), scale, zero_point)
            steps[device, : rate.values] = 2 ** (8 - rate.bits)
    if not np.isfinite(steps).any():
        raise RefineError(
            f"event {start.event}: its latents are not in the journal any more; refine by the recording, --gather FILE"
        )
    try:
        encoder = float_encoder(bundle.encoder_path.read_bytes())
    except FloatEncoderError as error:
        raise RefineError(f"{bundle.encoder_path}: {error}") from None
    return LatentMisfit(
        LatentModel(encoder, bundle.companding, acquisition, np.full(length, scale)),
        received,
        steps,
    )


def _account(start: StoredMap, refined: Refined, iterations: int, gather: Path | None) -> dict[str, Any]:
    return {
        "of_revision": start.revision,
        "by": "latents" if gather is None else "gather",
        "gather": None if gather is None else str(gather.resolve()),
        "iterations": refined.iterations,
        "iterations_asked": iterations,
        "gathers_modelled": refined.modelled,
        "objective": list(refined.objective),
        "misfit": list(refined.misfit),
        "misfit_unit": refined.unit,
        "settings": refined.settings,
        "refined_us": now_us(),
    }
