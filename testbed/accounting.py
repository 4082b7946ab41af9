"""Account for a run: bytes, latency and error of every event, from the logs, the journal and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from central.storage.journal import Journal
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition
from physics.metrics import mae, ssim
from physics.modelling import model_gathers
from physics.normalise import normalise_velocity
from testbed.processes import Process
from testbed.samples import Sample


def account(
    devices: list[Process],
    data_dir: Path,
    maps: dict[int, StoredMap],
    events: list[Sample],
    acquisition: Acquisition,
) -> dict[str, Any]:
    """Return ``{"events": [...], "total": {...}}``: times in ms, bytes with all ZeroMQ headers and acknowledgements.

    Bytes are those of ZeroMQ's protocol over TCP, both directions, without TCP and IP headers. Connection set-up,
    acknowledgements and device status messages are spread evenly over the events.

    Latency starts when the last device has recorded. Its parts are encode (slowest device), link (from sending to
    arrival at the centre, slowest device), assemble (waiting at the centre) and decode.
    """
    statistics = [process.entries("statistics")[-1] for process in devices]
    both_ways = sum(row["bytes_sent"] + row["bytes_received"] for row in statistics)
    sent = [sending(process) for process in devices]
    journal = Journal(data_dir)
    rows = []
    try:
        for number, event in enumerate(events, start=1):
            stored = maps[number]
            records = journal.of_event((stored.survey, number, stored.model_hash))
            rows.append(_row(number, event, stored, records, sent, acquisition))
    finally:
        journal.close()
    shared = (both_ways - sum(row["bytes"] for row in rows)) / len(rows)
    for row in rows:
        row["bytes"] = round(row["bytes"] + shared)
    raw_bytes = int(np.prod(acquisition.gather_shape)) * 4
    bytes_an_event = both_ways / len(rows)
    total = {
        "maps": len(maps),
        "devices_present": sorted({device for row in rows for device in row["devices"]}),
        "lost": sum(row["waiting"] + row["dropped"] + row["refused"] for row in statistics),
        "bytes_an_event": round(bytes_an_event, 1),
        "record_bytes_an_event": round(
            float(np.mean([stored.provenance["received_bytes"] for stored in maps.values()])), 1
        ),
        "raw_bytes_an_event": raw_bytes,
        "times_fewer_bytes": round(raw_bytes / bytes_an_event, 1),
        "median_ms": {
            step: round(float(np.median([row["ms"][step] for row in rows])), 2) for step in rows[0]["ms"]
        },
        "mae": _mean([row["mae"] for row in rows]),
        "ssim": _mean([row["ssim"] for row in rows]),
    }
    return {"events": rows, "total": total}


def sending(process: Process) -> dict[int, dict[str, float]]:
    """Return when a device recorded, encoded and first sent each event."""
    events: dict[int, dict[str, float]] = {}
    boot = 0
    recorded: dict[int, dict] = {}
    for row in process.entries():
        if row["message"] == "started":
            boot, recorded = row["boot"], {}
        elif row["message"] == "boot_changed":
            boot = row["boot"]
        elif row["message"] == "recorded":
            recorded[row["sequence"]] = row
        elif row["message"] == "sent" and not row["again"] and row["boot"] == boot:
            first = recorded[row["sequence"]]
            events[first["event"]] = {
                "recorded_us": first["recorded_us"],
                "encode_ms": first["encode_s"] * 1000,
                "network_ms": first["network_s"] * 1000,
                "sent_us": row["sent_us"],
            }
    return events


def _row(
    number: int,
    event: Sample,
    stored: StoredMap,
    records: list,
    sent: list[dict[int, dict[str, float]]],
    acquisition: Acquisition,
) -> dict[str, Any]:
    provenance = stored.provenance
    arrived = {record.device: record.received_us for record in records}
    # Replaying devices start at slightly different times; an event counts from the last recording.
    recorded_us = max(log[number]["recorded_us"] for log in sent)
    row: dict[str, Any] = {
        "event": number,
        "family": event.family,
        "devices": provenance["devices"],
        "bytes": sum(record.wire_bytes for record in records),
        "ms": {
            "encode": round(max(log[number]["encode_ms"] for log in sent), 2),
            "link": round(
                max((arrived[device] - log[number]["sent_us"]) / 1000 for device, log in enumerate(sent)), 2
            ),
            "assemble": round((provenance["assembled_us"] - provenance["last_received_us"]) / 1000, 2),
            "decode": round((provenance["decoded_us"] - provenance["assembled_us"]) / 1000, 2),
            "in_all": round((provenance["decoded_us"] - recorded_us) / 1000, 2),
        },
        "mae": None,
        "mae_mps": None,
        "ssim": None,
        "misfit": None,
    }
    if event.map_mps is None:
        row["misfit"] = round(data_misfit(stored, event.gather, acquisition), 4)
    else:
        predicted = normalise_velocity(stored.velocity_mps, acquisition)
        true = normalise_velocity(event.map_mps, acquisition)
        row["mae"] = round(mae(predicted, true), 4)
        row["mae_mps"] = round(mae(stored.velocity_mps, event.map_mps), 1)
        row["ssim"] = round(ssim(predicted, true), 4)
    return row


def data_misfit(stored: StoredMap, gather: np.ndarray, acquisition: Acquisition) -> float:
    """Return the relative L2 misfit between a recorded gather and the one modelled from the predicted map."""
    modelled = model_gathers(stored.velocity_mps[None, None], acquisition, engine="openfwi")[0]
    return float(np.linalg.norm(modelled - gather) / np.linalg.norm(gather))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None
