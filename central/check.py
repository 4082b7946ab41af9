"""Stored maps held against what came: waves through the map, encoded as devices do, beside the latents received.

The first check of a map's physics costs no byte (docs/architecture.md); the second needs the recording. What comes of
them is kept in the map's provenance under ``consistency``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from central.config import ModelSection
from central.evidence import EvidenceError, latent_model, latents_of, model_of, read_gather, received_latents
from central.store import Store, StoredMap
from firmware_py.bundle import Bundle
from models.decoder import FAMILIARITY
from models.familiarity import FamiliarityError, load_familiarity
from models.latent_model import LatentModel
from physics.acquisition import Acquisition
from physics.modelling import ModellingError, model_gathers


@dataclass(frozen=True)
class Checked:
    """A map and what was found: ``latents`` is the root mean square difference in standard deviations of a latent,
    0 for a perfect match and about 1.4 for an unrelated gather; ``gather`` that of the recording, as a share of it."""

    stored: StoredMap
    latents: float
    gather: float | None


def check_events(
    data_dir: Path,
    models: Sequence[ModelSection],
    event: int | None = None,
    survey: int | None = None,
    gather: Path | None = None,
) -> Iterator[Checked]:
    """Check the newest map of ``event``, or of every event that has none yet, and keep each result.

    ``gather`` is a .npy of the event's recording ``(S, T, R)``. Raises ``EvidenceError``, ``StoreError`` and
    ``BundleError``.
    """
    store = Store(data_dir)
    known: dict[bytes, tuple[Bundle, LatentModel]] = {}
    try:
        if event is not None:
            chosen = [store.get(event, survey)]
        else:
            chosen = [stored for stored in store.newest(survey) if "consistency" not in stored.provenance]
        for stored in chosen:
            if stored.model_hash not in known:
                known[stored.model_hash] = _model(stored, models)
            checked = _check(data_dir, store, stored, *known[stored.model_hash], gather)
            found = {"latents": round(checked.latents, 4)}
            if checked.gather is not None:
                found["gather"] = round(checked.gather, 4)
            store.amend(stored, "consistency", found)
            yield checked
    finally:
        store.close()


def _model(stored: StoredMap, models: Sequence[ModelSection]) -> tuple[Bundle, LatentModel]:
    section, bundle = model_of(stored, models)
    path = section.decoder / FAMILIARITY
    try:
        spread = load_familiarity(path, bundle.output.shape[1]).spread
    except FamiliarityError as error:
        raise EvidenceError(f"{error}; or convert the model again: it tells how far latents spread") from None
    return bundle, latent_model(bundle, Acquisition.from_dict(bundle.manifest["acquisition"]), spread)


def _check(
    data_dir: Path, store: Store, stored: StoredMap, bundle: Bundle, model: LatentModel, gather: Path | None
) -> Checked:
    key = (stored.survey, stored.event, stored.model_hash)
    latents = latents_of(data_dir, key, store.emitted_through(key))
    received, steps = received_latents(stored, bundle, model.acquisition, latents)
    recorded = None if gather is None else read_gather(gather, model.acquisition)
    if recorded is not None and not recorded.any():
        raise EvidenceError(f"{gather}: expected a recording, got silence")
    try:
        off = (model.latents(stored.velocity_mps) - received) / model.spread
        sent = np.isfinite(steps)
        misfit = None
        if recorded is not None:
            modelled = model_gathers(stored.velocity_mps[None, None], model.acquisition)[0]
            misfit = float(np.sqrt(np.square(modelled - recorded).mean() / np.square(recorded).mean()))
    except ModellingError as error:
        raise EvidenceError(f"event {stored.event}: {error}") from None
    return Checked(stored, float(np.sqrt(np.square(off[sent]).mean())), misfit)
