"""Read a survey's stored events to learn from: latents, and refined maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from central.config import ModelSection
from central.learning.versions import AdaptationError
from central.storage.journal import Journal
from central.storage.map_store import Store, StoredMap
from central.verification.check_inputs import (
    CheckInputError,
    latents_of_map,
    model_of,
    received_latents,
)
from firmware_py.inference.bundle import Bundle
from physics.acquisition import Acquisition
from physics.files.atomic import atomic_write

MIN_EVENTS = 10
# Every fifth event is held back from training, for the gate.
HELD_BACK_EVERY = 5
# How the label of an event was made: by the decoder, or by a refinement from latents or from the recording.
PREDICTED, BY_LATENTS, BY_RECORDING = 0, 1, 2


@dataclass(frozen=True)
class SurveyEvents:
    """Stored events of one model, in order of decoding.

    Attributes:
        keys: Survey, event and revision, ``(n, 3)``.
        latents: As received, ``(n, n_devices, latent)`` int8; absent devices have zeros.
        present: Devices that were received, ``(n, n_devices)`` bool.
        received: The same latents as real values, ``(n, n_devices, latent)`` float32.
        steps: Error of each value in int8 steps, likewise; infinite where nothing was sent.
        kind: ``PREDICTED``, ``BY_LATENTS`` or ``BY_RECORDING``, ``(n,)``.
        refined_mps: Refined maps, ``(n, nz, nx)`` float32; zeros where ``PREDICTED``.
    """

    keys: np.ndarray
    latents: np.ndarray
    present: np.ndarray
    received: np.ndarray
    steps: np.ndarray
    kind: np.ndarray
    refined_mps: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_held_back(self) -> np.ndarray:
        """Events that are never trained on, ``(n,)`` bool."""
        return np.arange(len(self)) % HELD_BACK_EVERY == HELD_BACK_EVERY - 1

    def save(self, path: Path) -> None:
        """Write a .npz file atomically."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> SurveyEvents:
        """Read a file written by ``save``."""
        with np.load(path, allow_pickle=False) as content:
            return cls(**{field.name: content[field.name] for field in fields(cls)})


def find_model(
    data_dir: Path, models: Sequence[ModelSection], survey: int | None, limit: int
) -> tuple[ModelSection, Bundle]:
    """Return the released model of the last decoded map. Surveys are looked for among the last ``limit`` events.

    Raises:
        AdaptationError: There is no map, or there are several surveys and none is named.
        CheckInputError: The model is unknown.
        BundleError: The bundle is damaged.
        StoreError: The database cannot be read.
    """
    with closing(Store(data_dir)) as store:
        maps = [one for one in store.recent(survey, limit) if isinstance(one, StoredMap)]
    if not maps:
        raise AdaptationError("adapt: expected a survey with maps, found none; run the centre first")
    surveys = sorted({one.survey for one in maps})
    if len(surveys) > 1:
        raise AdaptationError(f"adapt: surveys {surveys} have maps; name one with --survey")
    return model_of(maps[-1], models, data_dir)


def read_events(
    data_dir: Path, bundle: Bundle, acquisition: Acquisition, survey: int | None, limit: int
) -> SurveyEvents:
    """Read the last ``limit`` events that were decoded from latents of ``bundle``.

    Damaged maps and events whose latents are no longer in the journal are left out.

    Raises:
        AdaptationError: There are fewer than ``MIN_EVENTS``.
        StoreError: The database cannot be read.
    """
    rows: list[tuple] = []
    left_out: Counter[str] = Counter()
    n_devices, latent = acquisition.n_devices, bundle.output.shape[1]
    with closing(Store(data_dir)) as store, closing(Journal(data_dir)) as journal:
        for stored in store.recent(survey, limit):
            if not isinstance(stored, StoredMap):
                left_out["damaged"] += 1
                continue
            if stored.model_hash != bundle.model_hash:
                left_out["of another encoder"] += 1
                continue
            latents = latents_of_map(stored, store, journal)
            try:
                received, steps = received_latents(stored, bundle, acquisition, latents)
            except CheckInputError:
                left_out["without latents in the journal"] += 1
                continue
            codes = np.zeros((n_devices, latent), np.int8)
            present = np.isfinite(steps).any(axis=1)
            for device in np.flatnonzero(present):
                codes[device] = bundle.coding.unpack(latents[int(device)].payload)
            key = (stored.survey, stored.event, stored.revision)
            rows.append((key, codes, present, received, steps, *_label(stored)))
    if len(rows) < MIN_EVENTS:
        why = "".join(f"; {count} {reason}" for reason, count in left_out.items())
        raise AdaptationError(
            f"adapt: expected at least {MIN_EVENTS} events of encoder {bundle.model_hash.hex()} with latents, found "
            f"{len(rows)}{why}; wait for more"
        )
    return SurveyEvents(*(np.array(column) for column in zip(*rows, strict=True)))


def _label(stored: StoredMap) -> tuple[int, np.ndarray]:
    """Return the kind of an event's label, and its refined map."""
    refinement = stored.provenance.get("refinement")
    if refinement is None:
        return PREDICTED, np.zeros_like(stored.velocity_mps)
    return BY_RECORDING if refinement["by"] == "gather" else BY_LATENTS, stored.velocity_mps
