"""Export the state of the centre and its devices as Prometheus metrics.

``[central] metrics_listen`` serves them, or a page mounts them. Device metrics come from the database. Process metrics
start at zero with the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, generate_latest, make_asgi_app
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from central.dashboard.http_server import bounded_server, listen
from central.errors import CentralError
from central.fleet.device_views import STATES, DeviceView, devices
from central.storage.database import StoreError
from firmware_py.protocol.printable import printable

# Histogram buckets of the time from an event's assembly to its map, 1 ms to 10 s.
DECODE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# (name after epic_device_, help text, field of DeviceView, whether it is a counter)
_OF_DEVICES: tuple[tuple[str, str, str, bool], ...] = (
    ("lag_seconds", "Age of the newest record when it arrived.", "lag_s", False),
    ("age_seconds", "Age of the newest record now.", "age_s", False),
    ("records", "Records kept.", "records", True),
    ("missing_records", "Numbers of records that have not come.", "loss", False),
    (
        "acknowledged_lost_records",
        "Records that the device says were acknowledged and that the store has not.",
        "acknowledged_lost",
        False,
    ),
    ("resent_records", "Records that the store had lost and the device sent again.", "resent", True),
    ("not_kept_records", "Records that the store lost and the device had no more.", "not_kept", True),
    ("dropped_records", "Records that the device dropped for lack of space.", "dropped", True),
    ("received_bytes", "Bytes from the device, with what ZeroMQ adds.", "bytes_received", True),
    ("sent_bytes", "Bytes to the device, with what ZeroMQ adds.", "bytes_sent", True),
    ("refused_records", "Records that were refused.", "refused", True),
    (
        "rejected_recordings",
        "Recordings that the device could not encode since its start.",
        "rejected",
        True,
    ),
    ("queue_records", "Records that wait on the device.", "queue_depth", False),
    ("encode_seconds", "Time the last encoding took.", "encode_s", False),
    ("temperature_celsius", "Temperature of the device.", "temperature_c", False),
    ("disk_free_bytes", "Room on the device's disk.", "disk_free_bytes", False),
    ("memory_free_bytes", "Memory available on the device.", "memory_free_bytes", False),
    ("uptime_seconds", "Time since the device's process started.", "uptime_s", False),
    ("latent_bytes", "Length of the latents that the device makes.", "latent_bytes", False),
    ("clock_offset_seconds", "How far the centre's clock is ahead of the device's.", "clock_offset_s", False),
    ("round_trip_seconds", "Way to the centre and back.", "round_trip_s", False),
)
_OF_RECEIVER = {
    "records": "Records kept.",
    "duplicates": "Records that were there already.",
    "refused": "Records refused.",
    "commit_failed": "Groups of records that the disk did not take.",
    "damaged": "Messages that were no record.",
    "identity_mismatch": "Records under another's number.",
    "not_taken": "Records of a kind that the centre has no use for.",
    "not_allowed": "Messages of peers whose key was withdrawn.",
    "cut_off": "Connections shut down for a limit: an unfinished message, too many connections, or a revoked key.",
    "unanswered": "Answers that nobody took.",
    "bytes_received": "Bytes received.",
    "bytes_sent": "Bytes sent.",
}


class MetricsError(CentralError, OSError):
    """The metrics cannot be served at the configured address."""


def decode_histogram() -> Histogram:
    return Histogram("epic_decode_seconds", "Time to decode a map.", buckets=DECODE_BUCKETS_S, registry=None)


@dataclass(frozen=True)
class RuntimeMetrics:
    """Counters of a running centre.

    ``lines`` returns the gateway's counters by line. ``backlog`` returns the number of journal records not decoded yet.
    """

    received: Counter[str]
    maps: Counter[str]
    backlog: Callable[[], int]
    lines: Callable[[], dict[str, Counter[str]]]
    decode_s: Histogram
    checks: Counter[str]


class CentralCollector(Collector):
    """Prometheus collector of the centre over ``data_dir``; ``live`` holds the process metrics if it runs here."""

    def __init__(self, data_dir: Path, live: RuntimeMetrics | None) -> None:
        self._data_dir = data_dir
        self._live = live

    def collect(self) -> Iterator[Metric]:
        try:
            views = devices(self._data_dir)
        except StoreError:
            views = None
        yield GaugeMetricFamily(
            "epic_store_up", "Whether the centre's file can be read.", float(views is not None)
        )
        yield from _of_devices(views or [])
        if self._live:
            yield from _of_process(self._live)


def _of_devices(views: list[DeviceView]) -> Iterator[Metric]:
    labels = ("survey", "device")
    seen = GaugeMetricFamily(
        "epic_device_last_seen_timestamp_seconds", "When the device was last seen.", labels=labels
    )
    state = StateSetMetricFamily(
        "epic_device_state", "Whether it is on time, by the age of its data.", labels=labels
    )
    info = InfoMetricFamily("epic_device", "What the device runs.", labels=labels)
    for view in views:
        key = (str(view.survey), str(view.device))
        if view.last_seen_us:
            seen.add_metric(key, view.last_seen_us / 1e6)
        state.add_metric(key, {name: name == view.state for name in STATES})
        known = {"model_hash": view.model_hash, "firmware": view.firmware, "board": view.board}
        info.add_metric(key, {name: printable(value) for name, value in known.items() if value})
    yield from (seen, state, info)
    for name, text, column, grows in _OF_DEVICES:
        family = (CounterMetricFamily if grows else GaugeMetricFamily)(
            f"epic_device_{name}", text, labels=labels
        )
        for view in views:
            if (value := getattr(view, column)) is not None:
                family.add_metric((str(view.survey), str(view.device)), value)
        yield family


def _of_process(live: RuntimeMetrics) -> Iterator[Metric]:
    for name, text in _OF_RECEIVER.items():
        yield CounterMetricFamily(f"epic_receiver_{name}", text, live.received[name])
    maps = CounterMetricFamily("epic_maps", "Maps drawn.", labels=("kind",))
    for kind in ("complete", "partial", "failed", "commit_failed"):
        maps.add_metric((kind,), live.maps[kind])
    yield maps
    checks = CounterMetricFamily("epic_checks", "Maps checked by forward modelling.", labels=("kind",))
    for kind in ("checked", "failed"):
        checks.add_metric((kind,), live.checks[kind])
    yield checks
    yield from live.decode_s.collect()
    yield GaugeMetricFamily(
        "epic_backlog_records", "Records kept that the decoder has not taken up.", live.backlog()
    )
    lines = CounterMetricFamily("epic_line", "What passed on the gateway's lines.", labels=("line", "what"))
    for name, counts in live.lines().items():
        for what, value in sorted(counts.items()):
            lines.add_metric((name, what), value)
    yield lines


def metrics_text(data_dir: Path, live: RuntimeMetrics | None) -> bytes:
    """Return all metrics in Prometheus's text format."""
    return generate_latest(_registry(data_dir, live))


def _registry(data_dir: Path, live: RuntimeMetrics | None) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(CentralCollector(data_dir, live))
    return registry


class MetricsServer:
    """HTTP server of the metrics at ``address`` (host:port), on its own thread until closed."""

    def __init__(self, address: str, data_dir: Path, live: RuntimeMetrics) -> None:
        """Raises ``MetricsError``."""
        try:
            self._listener = listen(address)
        except OSError as error:
            raise MetricsError(
                f"{address}: metrics cannot be served there ({error.strerror or error}); choose another port in "
                "[central] metrics_listen"
            ) from None
        self.port: int = self._listener.getsockname()[1]
        self._server = bounded_server(make_asgi_app(_registry(data_dir, live)))
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
