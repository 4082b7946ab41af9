"""Fetch the recordings of some events of a run, refine their maps, and draw them beside the first ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from central.config import ModelSection
from central.export.render import RefinedRow, draw_refined
from central.recordings.gathers import assemble
from central.recordings.store import KEPT, RecordingStore, Request
from central.storage.map_store import Store, StoredMap
from central.verification.refine import refine_event
from central.verification.refine_inputs import FETCHED, RefinementRequest
from physics.acquisition import Acquisition
from testbed.errors import TestbedError
from testbed.processes import Process
from testbed.samples import Sample

FETCH_TIMEOUT_S = 300.0


def least_certain(maps: dict[int, StoredMap], count: int) -> list[int]:
    """Return the ``count`` events with the highest mean uncertainty, highest first."""
    by_uncertainty = sorted(maps, key=lambda event: -float(maps[event].uncertainty_mps.mean()))
    return by_uncertainty[:count]


def fetch_recordings(
    data_dir: Path,
    events: Sequence[int],
    devices: Sequence[Process],
    centre: Process,
    on_step: Callable[[str], None],
    timeout_s: float = FETCH_TIMEOUT_S,
) -> dict[int, dict[str, Any]]:
    """Fetch the recordings of ``events``, one after the other, from devices that were started a second time.

    Returns:
        For each event the bytes on the link and of the coded parts, and the seconds from the request to the last part.

    Raises:
        TestbedError: A process failed, a part is not available, or time ran out.
    """
    deadline_s = time.monotonic() + timeout_s

    def check() -> None:
        for process in (*devices, centre):
            if process.exit_code is not None:
                raise TestbedError(f"{process.name}: {process.complaint()}")
        if time.monotonic() > deadline_s:
            raise TestbedError(
                f"recordings not fetched after {timeout_s:.0f} s; see the logs in {data_dir.parent}"
            )
        time.sleep(0.1)

    while any(len(process.entries("started")) < 2 for process in devices):
        on_step("devices start again")
        check()
    accounts = {}
    with closing(RecordingStore(data_dir)) as store:
        for event in events:
            asked = store.ask(event, None)
            while store.requests(asked[0].survey, event, only_open=True):
                on_step(f"fetching the recordings of event {event}")
                check()
            requests = store.requests(asked[0].survey, event)
            for request in requests:
                if request.state != KEPT:
                    raise TestbedError(
                        f"event {event}, device {request.device}: {request.state}; {request.reason}"
                    )
            accounts[event] = _account(requests)
    return accounts


def _account(kept: list[Request]) -> dict[str, Any]:
    ended_us = max(request.changed_us for request in kept)
    return {
        "bytes": sum(request.wire_bytes for request in kept),
        "part_bytes": sum(request.part_bytes for request in kept),
        "s": round((ended_us - min(request.asked_us for request in kept)) / 1e6, 1),
    }


def refine_fetched(
    out: Path,
    model: ModelSection,
    events: Sequence[int],
    iterations: int,
    on_step: Callable[[str], None],
) -> dict[int, dict[str, Any]]:
    """Refine the events' maps by the fetched recordings; return misfits, seconds and iterations of each."""
    results = {}
    for event in events:

        def on_iteration(done: int, misfit: float, velocity_mps: np.ndarray, event: int = event) -> None:
            on_step(f"refining event {event}: iteration {done} of {iterations}, misfit {misfit:.3f}")

        began_s = time.process_time()
        outcome = refine_event(
            out / "central", [model], RefinementRequest(event, None, iterations, FETCHED), on_iteration
        )
        results[event] = {
            "s": round(outcome.elapsed_s, 1),
            "core_s": round(time.process_time() - began_s, 1),
            "iterations": outcome.refined.iterations,
            "misfit": [round(value, 4) for value in outcome.refined.misfit],
            "misfit_unit": outcome.refined.unit,
            "revision": outcome.revision,
        }
    return results


def summarise(
    data_dir: Path,
    samples: Sequence[Sample],
    first: dict[int, StoredMap],
    fetched: dict[int, dict[str, Any]],
    refined: dict[int, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return one row per fetched event: bytes, seconds, and errors in m/s before and after where the truth is known."""
    rows = []
    with closing(Store(data_dir)) as store:
        for event, account in fetched.items():
            sample = samples[event - 1]
            exact = np.array_equal(assemble(data_dir, event).samples, sample.gather)
            row: dict[str, Any] = {
                "event": event,
                "family": sample.family,
                "bit_for_bit": exact,
                "fetched": account,
            }
            if sample.map_mps is not None:
                row["mae_mps"] = _error_mps(first[event], sample)
            if event in refined:
                row["refined"] = dict(refined[event])
                if sample.map_mps is not None:
                    row["refined"]["mae_mps"] = _error_mps(store.get(event), sample)
            rows.append(row)
    return rows


def _error_mps(stored: StoredMap, sample: Sample) -> float:
    return round(float(np.abs(stored.velocity_mps - sample.map_mps).mean()), 1)


def draw_story(
    path: Path,
    data_dir: Path,
    samples: Sequence[Sample],
    first: dict[int, StoredMap],
    account_of: dict[int, dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    acquisition: Acquisition,
) -> None:
    """Draw truth, first map and refined map of each fetched event, with bytes and seconds."""
    drawn = []
    with closing(Store(data_dir)) as store:
        for row in rows:
            event, accounting = row["event"], account_of[row["event"]]
            error = f", error {row['mae_mps']:.0f} m/s" if "mae_mps" in row else ""
            begun = (
                f"first map: {accounting['bytes']} bytes, {accounting['ms']['in_all'] / 1000:.2f} s{error}"
            )
            kilobytes = f"{row['fetched']['bytes'] / 1000:.0f} kB in {row['fetched']['s']:.0f} s"
            if refined := row.get("refined"):
                error = f", error {refined['mae_mps']:.0f} m/s" if "mae_mps" in refined else ""
                ended = f"fetched: {kilobytes}; refined in {refined['core_s']:.0f} core s{error}"
                after = store.get(event).velocity_mps
            else:
                ended, after = f"fetched: {kilobytes}; not refined", None
            drawn.append(
                RefinedRow(
                    f"event {event}, {row['family']}",
                    samples[event - 1].map_mps,
                    begun,
                    first[event].velocity_mps,
                    ended,
                    after,
                )
            )
    draw_refined(path, drawn, acquisition)
