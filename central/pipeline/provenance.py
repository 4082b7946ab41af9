"""Prepare the decoder's input, and describe the provenance of its map."""

from __future__ import annotations

from functools import cache
from importlib import metadata

import numpy as np

from central.pipeline.assembler import Event
from central.pipeline.decoders import MapDecoder
from physics.acquisition import Acquisition

# Mean uncertainty above which a map is flagged, of the range of velocities (300 m/s of 3000): a released model's mean
# error on its test set is about half of it.
UNCERTAINTY_LIMIT = 0.1
# Maximum spread of sample times in one event. Devices record it within seconds, and their clocks differ by a few at
# most.
MAX_SPREAD_S = 600.0


def latents_of(events: list[Event], decoder: MapDecoder) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 latents ``(n, n_devices, latent)`` and the mask of received ones ``(n, n_devices)``."""
    latents = np.zeros((len(events), decoder.n_devices, decoder.latent), np.int8)
    present = np.zeros(latents.shape[:2], bool)
    for row, event in enumerate(events):
        for device, latent in event.latents.items():
            latents[row, device] = decoder.coding.unpack(latent.payload)
            present[row, device] = True
    return latents, present


def _judged(event: Event, decoder: MapDecoder) -> dict:
    """Return the event's out-of-distribution score and its limit."""
    (latents,), (present,) = latents_of([event], decoder)
    rates = [decoder.coding.rates[0]] * decoder.n_devices
    for device, latent in event.latents.items():
        rates[device] = decoder.coding.rate(len(latent.payload))
    found = decoder.ood_score(latents, present, rates)
    if found is None:
        return {}
    score, limit = found
    return {"unfamiliarity": {"score": round(score, 3), "limit": round(limit, 3)}}


def map_flags(
    uncertainty_mps: np.ndarray, acquisition: Acquisition, ood_score: float | None, ood_limit: float | None
) -> list[str]:
    """Return why a map needs a review, one line a reason.

    The mean uncertainty predicts a map's error far better than the OOD score does. Models without an OOD score have
    None for it.
    """
    flags = []
    mean_mps = float(uncertainty_mps.mean())
    limit_mps = UNCERTAINTY_LIMIT * (acquisition.velocity_max_mps - acquisition.velocity_min_mps)
    if mean_mps > limit_mps:
        flags.append(
            f"uncertain: the mean uncertainty is {mean_mps:.0f} m/s (limit {limit_mps:.0f} m/s); expect errors of that "
            "size"
        )
    if ood_score is not None and ood_limit is not None and ood_score > ood_limit:
        flags.append(
            f"unlike training: the OOD score is {ood_score:.1f} (limit {ood_limit:.1f}); noise, another wavelet or "
            "source strength, or an earth of another kind"
        )
    return flags


def _spread(event: Event) -> list[str]:
    """Return a flag if the sample times cannot belong to one event. Devices without a clock are ignored."""
    times_us = [latent.sample_time_us for latent in event.latents.values() if latent.sample_time_us]
    spread_s = (max(times_us) - min(times_us)) / 1e6 if times_us else 0.0
    if spread_s <= MAX_SPREAD_S:
        return []
    return [
        f"sample times lie {spread_s:.0f} s apart, at most {MAX_SPREAD_S:.0f} s were expected: the event number was "
        "used again, or a device's clock is wrong"
    ]


def provenance_of(
    event: Event, decoder: MapDecoder, uncertainty_mps: np.ndarray, assembled_us: int, decoded_us: int
) -> dict:
    records = event.latents.values()
    judged = _judged(event, decoder)
    ood = judged.get("unfamiliarity", {})
    flags = [
        *map_flags(uncertainty_mps, decoder.acquisition, ood.get("score"), ood.get("limit")),
        *_spread(event),
    ]
    return {
        "devices": sorted(event.latents),
        "replaced": event.replaced,
        "model_hash": event.key[2].hex(),
        "decoder_sha256": decoder.sha256,
        **({"adaptation": decoder.adaptation} if decoder.adaptation else {}),
        "sample_time_us": min(record.sampled_us for record in records),
        "first_received_us": min(record.received_us for record in records),
        "last_received_us": max(record.received_us for record in records),
        "assembled_us": assembled_us,
        "decoded_us": decoded_us,
        "received_bytes": sum(record.wire_bytes for record in records),
        "latent_bytes": {str(device): len(event.latents[device].payload) for device in sorted(event.latents)},
        "software": _software(),
        "acquisition": _described(decoder.acquisition),
        **judged,
        **({"flags": flags} if flags else {}),
    }


# Both are the same for every map, and take a millisecond each to find.
@cache
def _described(acquisition: Acquisition) -> dict:
    return acquisition.to_dict()


@cache
def _software() -> dict[str, str]:
    try:
        return {"epic-fwi": metadata.version("epic-fwi")}
    except metadata.PackageNotFoundError:
        return {}
