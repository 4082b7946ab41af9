"""Assemble a fetched gather from its devices' parts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.recordings.given import given_path, read_given
from central.recordings.store import KEPT, RecordingError, RecordingStore, acquisition_of
from central.storage.map_store import Store, StoredMap
from firmware_py.protocol.recording_codec import RecordingCodecError
from physics.acquisition import Acquisition


@dataclass(frozen=True)
class FetchedGather:
    """Gather ``samples (S, T, R)`` float32; a receiver whose device has not delivered is NaN throughout.

    ``stored`` is the event's newest map. ``provenance`` says where the samples come from.
    """

    stored: StoredMap
    acquisition: Acquisition
    samples: np.ndarray
    provenance: dict[str, Any]

    @property
    def live(self) -> np.ndarray:
        """Mask ``(R,)``, True for receivers with samples."""
        return ~np.isnan(self.samples[0, 0])

    @property
    def name(self) -> str:
        return f"survey {self.stored.survey}, event {self.stored.event}"


def has_recording(data_dir: Path, survey: int, event: int) -> bool:
    """Return True if an event's recording was given, or a part of it fetched. Raises ``StoreError``."""
    if given_path(data_dir, survey, event).exists():
        return True
    with closing(RecordingStore(data_dir)) as recordings:
        return any(request.state == KEPT for request in recordings.requests(survey, event))


def read_recording(data_dir: Path, survey: int, event: int) -> np.ndarray | None:
    """Return an event's recording ``(S, T, R)`` float32, the given one before the fetched; None without either.

    Raises:
        RecordingError: A fetched part is damaged.
        StoreError: The file is damaged, or the database cannot be read.
    """
    if not has_recording(data_dir, survey, event):
        return None
    given = read_given(data_dir, survey, event)
    return assemble(data_dir, event, survey).samples if given is None else given


def assemble(data_dir: Path, event: int, survey: int | None = None) -> FetchedGather:
    """Assemble the kept parts of an event's recording; a partial gather has NaN where a device is missing.

    Raises:
        RecordingError: No part is kept, or a kept part is damaged.
        StoreError: The event has no map, or the database cannot be read.
    """
    with closing(Store(data_dir)) as maps:
        stored = maps.get(event, survey)
    acquisition = acquisition_of(stored)
    samples = np.full(acquisition.gather_shape, np.nan, np.float32)
    parts = []
    with closing(RecordingStore(data_dir)) as recordings:
        requests = recordings.requests(stored.survey, event)
        for request in requests:
            if request.state != KEPT:
                continue
            try:
                part = recordings.read(request, acquisition)
            except RecordingCodecError as error:
                raise RecordingError(f"event {event}, device {request.device}: {error}") from None
            samples[:, :, list(part.receivers)] = part.samples
            parts.append(
                {
                    "device": request.device,
                    "receivers": [min(part.receivers), max(part.receivers)],
                    "sha256": request.sha256.hex(),
                    "samples": part.samples.dtype.name,
                    "misfit_ppm": part.misfit_ppm,
                    "part_bytes": request.part_bytes,
                    "wire_bytes": request.wire_bytes,
                    "sample_time_us": request.sample_time_us,
                    "asked_us": request.asked_us,
                    "kept_us": request.changed_us,
                }
            )
    if not parts:
        states = ", ".join(f"device {r.device} {r.state}" for r in requests) or "nobody was asked"
        raise RecordingError(
            f"event {event}: no recording is kept ({states}); ask for it with: epic central fetch {event}"
        )
    missing = sorted(set(range(acquisition.n_devices)) - {part["device"] for part in parts})
    provenance = {"survey": stored.survey, "event": event, "parts": parts, "missing_devices": missing}
    return FetchedGather(stored, acquisition, samples, provenance)
