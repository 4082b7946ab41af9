"""Find the inputs of a map check: the devices' bundle, the received latents, a recording."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from central.config import ModelSection
from central.errors import CentralError
from central.storage.journal import Journal, JournalEntry
from central.storage.map_store import Store, StoredMap
from central.updates.rollout_store import RolloutStore, model_section
from firmware_py.inference.bundle import Bundle, load_bundle
from firmware_py.inference.companding import dequantise
from physics.acquisition import Acquisition

# Kind of a map's flag, for a large difference between modelled and recorded gather.
MISFIT = "misfit"

if TYPE_CHECKING:
    from models.inversion.latent_model import LatentModel


class CheckInputError(CentralError, ValueError):
    """An input of the check is missing or does not match."""


def read_gather(path: Path, acquisition: Acquisition) -> np.ndarray:
    """Read one recording ``(S, T, R)`` float32 from a .npy file; dead traces are NaN throughout.

    Raises:
        CheckInputError: The file cannot be read, or holds no recording of this survey.
    """
    try:
        gather = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "damaged, or of another format"
        raise CheckInputError(
            f"{path}: expected a .npy file of one gather; it cannot be read ({reason})"
        ) from None
    if not isinstance(gather, np.ndarray) or gather.shape != acquisition.gather_shape:
        got = getattr(gather, "shape", "an archive")
        raise CheckInputError(
            f"{path}: expected one gather {acquisition.gather_shape} (sources, samples, receivers), got {got}"
        )
    finite = gather.dtype.kind in "fiu" and np.isfinite(gather)
    if finite is not False:
        dead = np.isnan(gather).all(axis=1, keepdims=True)
        if dead.all():
            raise CheckInputError(f"{path}: expected at least one live trace, got NaN only")
        finite |= dead
    if not np.all(finite):
        raise CheckInputError(
            f"{path}: expected finite numbers; mend the recording, or set dead traces to NaN"
        )
    return gather.astype(np.float32)


def model_of(
    stored: StoredMap, models: Sequence[ModelSection], data_dir: Path
) -> tuple[ModelSection, Bundle]:
    """Return the model that encoded the map's latents, from the configuration or a rollout.

    Raises:
        CheckInputError: The model is unknown.
        BundleError: The bundle is damaged.
        StoreError: The database cannot be read.
    """
    bundles = [load_bundle(section.bundle) for section in models]
    for section, bundle in zip(models, bundles, strict=True):
        if bundle.model_hash == stored.model_hash:
            return section, bundle
    with closing(RolloutStore(data_dir)) as rollouts:
        version = rollouts.version_of(stored.model_hash)
    if version is not None:
        section = model_section(data_dir, version)
        return section, load_bundle(section.bundle)
    known = ", ".join(bundle.model_hash.hex() for bundle in bundles)
    raise CheckInputError(
        f"event {stored.event}: predicted from latents of encoder {stored.model_hash.hex()}; expected one of "
        f"[[model]], which has {known}; add the bundle that the devices ran"
    )


def latents_of_map(stored: StoredMap, store: Store, journal: Journal) -> dict[int, JournalEntry]:
    """Return the latents that this map was decoded from, each device's newest at that time. Later ones are left out."""
    found: dict[int, JournalEntry] = {}
    key = (stored.survey, stored.event, stored.model_hash)
    n_devices = len(stored.provenance["acquisition"]["device_receivers"])
    for latent in journal.latents_of(key, n_devices, store.decoded_through(stored)):
        held = found.get(latent.device)
        if held is None or held.order < latent.order:
            found[latent.device] = latent
    return found


def received_latents(
    stored: StoredMap, bundle: Bundle, acquisition: Acquisition, latents: dict[int, JournalEntry]
) -> tuple[np.ndarray, np.ndarray]:
    """Return received latents as real values, with their quantisation error.

    Returns:
        Latents ``(n_devices, latent)``, and the possible error of each value in int8 steps, the same shape; infinite
            where
        nothing was sent.

    Raises:
        CheckInputError: No latent was received.
    """
    length, scale, zero_point = bundle.output.shape[1], bundle.output.scale, bundle.output.zero_point
    received = np.zeros((acquisition.n_devices, length), np.float32)
    steps = np.full(received.shape, np.inf)
    for device, latent in latents.items():
        if device < acquisition.n_devices and bundle.coding.is_latent(latent.payload):
            rate = bundle.coding.rate(len(latent.payload))
            received[device] = dequantise(bundle.coding.unpack(latent.payload), scale, zero_point)
            steps[device, : rate.values] = 2 ** (8 - rate.bits)
    if not np.isfinite(steps).any():
        raise CheckInputError(f"event {stored.event}: its latents are no longer in the journal")
    return received, steps


def latent_model(bundle: Bundle, acquisition: Acquisition, spread: np.ndarray) -> LatentModel:
    """Build the model from maps to the latents of a bundle's devices.

    Raises:
        CheckInputError: The modelling cannot be set up.
    """
    # Imported here: commands load this module just for its error class.
    from models.inversion.latent_model import LatentModel
    from models.networks.float_encoder import FloatEncoderError, float_encoder

    try:
        encoder = float_encoder(bundle.encoder_path.read_bytes())
    except FloatEncoderError as error:
        raise CheckInputError(f"{bundle.encoder_path}: {error}") from None
    return LatentModel(encoder, bundle.companding, acquisition, spread)
