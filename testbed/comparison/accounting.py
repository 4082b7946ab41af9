"""Account for a run of a comparison: latency by part, bytes on socket and link, energy, map error."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from central.storage.journal import Journal
from central.storage.map_store import Store
from physics.acquisition import Acquisition
from physics.metrics import mae, ssim
from physics.normalise import normalise_velocity
from testbed.accounting import sending
from testbed.emulation.energy import Radio, link_energy
from testbed.emulation.links import LinkProfile, on_the_air
from testbed.emulation.shaping import Transfer
from testbed.processes import Process

PARTS = ("encode", "queue", "link", "assemble", "decode")


@dataclass(frozen=True)
class EventRow:
    """One event: milliseconds by part (slowest device), the devices present, the map ``(nz, nx)`` in [-1, 1].

    The recording time, one second for all systems, is not included.

    Attributes:
        encode: From samples to payload.
        queue: Until the payload is handed to the link (EPIC writes it to disk first).
        link: Until the centre has it.
        assemble: Until the last device's part is processed, or the deadline.
        decode: Until the map is ready.
    """

    recorded_us: int
    ms: dict[str, float]
    devices: list[int]
    predicted: np.ndarray
    # Per device: encoding time without the int8 network's run, and the run's time.
    encoding_ms: list[tuple[float, float]]

    @property
    def in_all_ms(self) -> float:
        return sum(self.ms.values())


def epic_rows(data_dir: Path, devices: dict[int, Process], first: int, last: int) -> dict[int, EventRow]:
    """Return rows of EPIC's events ``first`` to ``last`` that have a map.

    The times come from the devices' logs and the centre's file.
    """
    logs = {device: sending(process) for device, process in devices.items()}
    store, journal = Store(data_dir), Journal(data_dir)
    rows = {}
    try:
        for stored in store.newest():
            if not first <= stored.event <= last:
                continue
            records = journal.of_event((stored.survey, stored.event, stored.model_hash))
            times = {
                record.device: {**logs[record.device][stored.event], "received_us": record.received_us}
                for record in records
                if record.device in logs and stored.event in logs[record.device]
            }
            if len(times) == len(devices):
                provenance = stored.provenance
                acquisition = Acquisition.from_dict(provenance["acquisition"])
                rows[stored.event] = _row(
                    times,
                    provenance["assembled_us"],
                    provenance["decoded_us"],
                    provenance["devices"],
                    normalise_velocity(stored.velocity_mps, acquisition),
                )
    finally:
        store.close()
        journal.close()
    return rows


def baseline_rows(
    centre: Process, devices: dict[int, Process], maps: Path, first: int, last: int
) -> dict[int, EventRow]:
    """Return rows of a baseline's events ``first`` to ``last`` that have a map, from the logs of both sides."""
    sent: dict[tuple[int, int], dict[str, float]] = {}
    for device, process in devices.items():
        for row in process.entries("sent"):
            sent[device, row["event"]] = {
                "recorded_us": row["recorded_us"],
                "encode_ms": row["encode_s"] * 1000,
                # Waiting for a turn on this machine's cores does not count as device time.
                "queue_ms": (row["sent_us"] - row["ready_us"]) / 1000,
                "sent_us": row["sent_us"],
            }
    rows = {}
    for row in centre.entries("map"):
        event = row["event"]
        if first <= event <= last and all((device, event) in sent for device in devices):
            times = {
                int(device): {**sent[int(device), event], "received_us": at_us}
                for device, at_us in row["received_us"].items()
            }
            predicted = np.load(maps / f"{event}.npy")
            rows[event] = _row(times, row["assembled_us"], row["decoded_us"], row["devices"], predicted)
    return rows


def _row(
    times: dict[int, dict[str, float]],
    assembled_us: int,
    decoded_us: int,
    devices: list[int],
    predicted: np.ndarray,
) -> EventRow:
    for row in times.values():
        row.setdefault("queue_ms", (row["sent_us"] - row["recorded_us"]) / 1000 - row["encode_ms"])
    ms = {
        "encode": max(row["encode_ms"] for row in times.values()),
        "queue": max(row["queue_ms"] for row in times.values()),
        "link": max((row["received_us"] - row["sent_us"]) / 1000 for row in times.values()),
        "assemble": (assembled_us - max(row["received_us"] for row in times.values())) / 1000,
        "decode": (decoded_us - assembled_us) / 1000,
    }
    recorded_us = int(min(row["recorded_us"] for row in times.values()))
    # A baseline does not log the two parts separately.
    networks_ms = [(row["encode_ms"], row.get("network_ms", 0.0)) for row in times.values()]
    encoding_ms = [(encode - network, network) for encode, network in networks_ms]
    return EventRow(recorded_us, ms, devices, predicted, encoding_ms)


@dataclass(frozen=True)
class ConditionAccount:
    """Result of one condition: ``rows`` by event, each device's link statistics, and the traffic of its proxy."""

    rows: dict[int, EventRow]
    statistics: list[dict]
    transfers: list[tuple[list[Transfer], list[Transfer]]]

    def slowed(self, code: float, network: float) -> ConditionAccount:
        """Return the account with encoding slowed: the int8 network by ``network``, everything else by ``code``."""
        rows = {
            event: replace(
                row,
                ms={**row.ms, "encode": max(code * own + network * nets for own, nets in row.encoding_ms)},
            )
            for event, row in self.rows.items()
        }
        return replace(self, rows=rows)

    def latency(self) -> dict[str, Any]:
        """Return milliseconds from recording to map, over the events."""
        rows = list(self.rows.values())
        totals = [row.in_all_ms for row in rows]
        return {
            "median_ms": {part: _median([row.ms[part] for row in rows]) for part in PARTS},
            "latency_median_ms": _median(totals),
            "latency_p95_ms": round(float(np.percentile(totals, 95)), 2),
        }

    def summary(
        self, profile: LinkProfile, truths: list[np.ndarray | None] | None, acquisition: Acquisition
    ) -> dict[str, Any]:
        """Return the figures of the condition.

        ``truths[e - 1]`` is event e's map in m/s; None without a trained network.
        """
        on_air = [on_the_air(profile, *both) for both in self.transfers]
        rows = list(self.rows.values())
        socket_up = sum(row["bytes_sent"] for row in self.statistics)
        socket_down = sum(row["bytes_received"] for row in self.statistics)
        errors = self._errors(truths, acquisition) if truths else []
        summary: dict[str, Any] = {
            "events": len(rows),
            **self.latency(),
            "devices": sorted({device for row in rows for device in row.devices}),
            "socket_bytes_up": round(socket_up / len(rows)),
            "socket_bytes_down": round(socket_down / len(rows)),
            "link_bytes": round(
                sum(piece.size_bytes for both in on_air for way in both for piece in way) / len(rows)
            ),
            "mae": round(float(np.mean([error[0] for error in errors])), 4) if errors else None,
            "ssim": round(float(np.mean([error[1] for error in errors])), 4) if errors else None,
        }
        if profile.radio:
            energies = self._energies(profile.radio, on_air)
            summary["energy_mj"] = round(1000 * _median([energy[0] for energy in energies], 9), 4)
            summary["energy_with_tail_mj"] = round(1000 * _median([energy[1] for energy in energies], 9), 2)
        return summary

    def _energies(
        self, radio: Radio, on_air: list[tuple[list[Transfer], list[Transfer]]]
    ) -> list[tuple[float, float]]:
        """Return the joules of all devices per event, each treated as isolated: without and with promotion and tail."""
        # Offset from the logs' wall clock to the proxies' monotonic clock.
        offset_s = time.time() - time.monotonic()
        starts = [self.rows[event].recorded_us / 1e6 - offset_s for event in sorted(self.rows)]
        ends = [*starts[1:], float("inf")]
        energies = []
        for start, end in zip(starts, ends, strict=True):
            of_devices = [
                link_energy(radio, _between(sent, start, end), _between(received, start, end))
                for sent, received in on_air
            ]
            energies.append((sum(e.transfer_j for e in of_devices), sum(e.with_tail_j for e in of_devices)))
        return energies

    def _errors(self, truths: list[np.ndarray | None], acquisition: Acquisition) -> list[tuple[float, float]]:
        errors = []
        for event, row in self.rows.items():
            truth = truths[event - 1]
            if truth is not None:
                true, predicted = normalise_velocity(truth, acquisition), np.clip(row.predicted, -1.0, 1.0)
                errors.append((float(mae(predicted, true)), float(ssim(predicted, true))))
        return errors


def _between(transfers: list[Transfer], start_s: float, end_s: float) -> list[Transfer]:
    return [transfer for transfer in transfers if start_s <= transfer.start_s < end_s]


def _median(values: list[float], digits: int = 2) -> float:
    return round(float(np.median(values)), digits)
