"""Check stored maps by forward modelling.

Waves are modelled through the map, encoded as on the devices, and compared with the received latents. This check costs
no extra bytes on the link (docs/architecture.md). With a recording at hand, the modelled gather is compared too.
Results are kept in the map's provenance under ``consistency``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.config import ModelSection
from central.recordings.given import keep_given
from central.storage.journal import Journal, JournalEntry
from central.storage.map_store import DamagedMapError, Store, StoredMap
from central.verification.check_inputs import (
    MISFIT,
    CheckInputError,
    latent_model,
    latents_of_map,
    model_of,
    read_gather,
    received_latents,
)
from firmware_py.inference.bundle import Bundle, BundleError
from firmware_py.runtime.log import now_us
from models.inversion.decoder import OOD_FILE
from models.inversion.latent_model import LatentModel
from models.inversion.ood import OodError, load_ood
from physics.acquisition import Acquisition
from physics.errors import ModellingError
from physics.modelling import model_gathers

# Misfit to the recording from which a map is flagged. Predicted maps of the twenty shipped gathers have 0.03 to 0.26,
# with 46 of 70 receivers silent 0.61, with reversed polarity 1.85.
MISFIT_LIMIT = 0.5


class UncheckableModel(CheckInputError):
    """No map of the model can be checked."""


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    ``latents`` is the root-mean-square difference in standard deviations of a latent: 0 for a perfect match, about 1.4
    for an unrelated gather. ``gather`` is the difference from the recording, relative to the recording;
    ``by_receiver`` is the same of each receiver ``(R,)``, NaN for one that recorded nothing. ``recorded`` is the
    recording ``(S, T, R)``.
    """

    stored: StoredMap
    latents: float
    gather: float | None
    by_receiver: np.ndarray | None = None
    recorded: np.ndarray | None = None

    @property
    def flag(self) -> tuple[str, str] | None:
        """Return kind and reason of the map's flag for ``Store.amend``; no reason where the misfit is usual."""
        if self.gather is None:
            return None
        if self.gather < MISFIT_LIMIT:
            return MISFIT, ""
        return MISFIT, (
            f"{self.gather:.2f} to the recording (limit {MISFIT_LIMIT:g}); 1 explains nothing of it. Check gain, order "
            "of shots and polarity"
        )

    @property
    def found(self) -> dict[str, Any]:
        """Return the entries for the map's provenance."""
        found: dict[str, Any] = {"latents": round(self.latents, 4), "checked_us": now_us()}
        if self.gather is None or self.by_receiver is None:
            return found
        shares = [None if np.isnan(misfit) else round(float(misfit), 3) for misfit in self.by_receiver]
        return {**found, "gather": round(self.gather, 4), "gather_by_receiver": shares}


@dataclass(frozen=True)
class Unchecked:
    """Map that cannot be checked, or the error of a damaged one, and the reason."""

    stored: StoredMap | DamagedMapError
    reason: str


def check_events(
    data_dir: Path,
    models: Sequence[ModelSection],
    event: int | None = None,
    survey: int | None = None,
    gather: Path | None = None,
) -> Iterator[Checked | Unchecked]:
    """Check the newest map of ``event``, or every unchecked newest map, last decoded first; store each result.

    ``gather`` is a .npy of the event's recording ``(S, T, R)``, dead traces NaN; the store keeps a copy, which the page
    shows. A map that cannot be checked does not stop the others.
    If no map of a model can be checked, only its last decoded map is reported.

    Raises:
        StoreError: The store cannot be read or updated, or the map of ``event`` is damaged.
        CheckInputError: The map of ``event`` cannot be checked.
    """
    checker = Checker(data_dir, models)
    with closing(Store(data_dir)) as store, closing(Journal(data_dir)) as journal:

        def check(stored: StoredMap) -> Checked:
            checked = checker.check(stored, latents_of_map(stored, store, journal), gather)
            if checked.recorded is not None:
                keep_given(data_dir, stored.survey, stored.event, checked.recorded)
            store.amend(stored, "consistency", checked.found, checked.flag)
            return checked

        if event is not None:
            yield check(store.get(event, survey))
            return
        through, without = store.last_id(), set[bytes]()
        while (id := store.newest_unchecked(0, through, survey, without)) is not None:
            through = id - 1
            try:
                stored = store.by_id(id)
                yield check(stored)
            except DamagedMapError as error:
                yield Unchecked(error, str(error))
            except CheckInputError as error:
                yield Unchecked(stored, str(error))
                if isinstance(error, UncheckableModel):
                    without.add(stored.model_hash)


def latent_distance(
    model: LatentModel, velocity_mps: np.ndarray, received: np.ndarray, steps: np.ndarray
) -> float:
    """Return the RMS difference between a map's latents and those received, in standard deviations of a latent.

    Args:
        model: From maps to latents.
        velocity_mps: ``(nz, nx)``.
        received: ``(n_devices, latent)``.
        steps: Error of each value received in int8 steps, likewise; infinite where nothing was sent.

    Raises:
        ModellingError: The map cannot be modelled.
    """
    off = (model.latents(velocity_mps) - received) / model.spread
    return float(np.sqrt(np.square(off[np.isfinite(steps)]).mean()))


def gather_misfit(
    velocity_mps: np.ndarray, recorded: np.ndarray, acquisition: Acquisition
) -> tuple[float, np.ndarray]:
    """Return the RMS difference between a map's gather and the recording ``(S, T, R)``, relative to the recording.

    Dead traces of the recording are NaN.

    Returns:
        The whole gather's, and each receiver's ``(R,)``; NaN where a receiver recorded nothing.

    Raises:
        ModellingError: The map cannot be modelled.
    """
    live = np.isfinite(recorded)
    off = np.where(live, model_gathers(velocity_mps[None, None], acquisition)[0] - recorded, 0.0)
    off_power, power = (np.square(one).sum((0, 1)) for one in (off, np.where(live, recorded, 0.0)))
    silent = np.full_like(power, np.nan)
    by_receiver = np.sqrt(np.divide(off_power, power, out=silent, where=power > 0))
    return float(np.sqrt(off_power.sum() / power.sum())), by_receiver


class Checker:
    """Compare maps with received data; each model is loaded and compiled once."""

    def __init__(self, data_dir: Path, models: Sequence[ModelSection]) -> None:
        """Prepare for ``models`` of the configuration; rolled-out models are found in ``data_dir``."""
        self._data_dir = data_dir
        self._models = models
        self._known: dict[bytes, tuple[Bundle, LatentModel]] = {}

    def check(
        self, stored: StoredMap, latents: dict[int, JournalEntry], gather: Path | None = None
    ) -> Checked:
        """Check a map against ``latents``, those it was decoded from.

        Raises:
            CheckInputError: An input is missing or does not match.
            StoreError: The database cannot be read.
        """
        if stored.model_hash not in self._known:
            self._known[stored.model_hash] = self._load(stored)
        bundle, model = self._known[stored.model_hash]
        received, steps = received_latents(stored, bundle, model.acquisition, latents)
        recorded = None if gather is None else read_gather(gather, model.acquisition)
        if recorded is not None and not np.nan_to_num(recorded).any():
            raise CheckInputError(f"{gather}: expected a recording, got silence")
        misfit, by_receiver = None, None
        try:
            distance = latent_distance(model, stored.velocity_mps, received, steps)
            if recorded is not None:
                misfit, by_receiver = gather_misfit(stored.velocity_mps, recorded, model.acquisition)
        except ModellingError as error:
            raise CheckInputError(f"event {stored.event}: {error}") from None
        if not np.isfinite(distance):
            raise CheckInputError(
                f"event {stored.event}: the waves through its map are not finite; it has velocities from "
                f"{stored.velocity_mps.min():g} to {stored.velocity_mps.max():g} m/s"
            )
        return Checked(stored, distance, misfit, by_receiver, recorded)

    def _load(self, stored: StoredMap) -> tuple[Bundle, LatentModel]:
        try:
            section, bundle = model_of(stored, self._models, self._data_dir)
            path = section.decoder / OOD_FILE
            try:
                spread = load_ood(path, bundle.output.shape[1]).spread
            except OodError as error:
                raise CheckInputError(
                    f"{error}; or convert the model again: it tells how far latents spread"
                ) from None
            acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
            return bundle, latent_model(bundle, acquisition, spread)
        except (CheckInputError, BundleError) as error:
            raise UncheckableModel(str(error)) from None
