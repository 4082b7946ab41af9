"""What became of every record, from what devices recorded and what the store holds."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chaos_world import World


@dataclass(frozen=True)
class Tally:
    """``lost``: recorded, and not in the journal; ``duplicated``: an event of a device there more than once;
    ``corrupted``: there with another latent than its recording's, or of no recording at all;
    ``reused``: numbers (device, boot, sequence) that a device gave twice.
    """

    records: int
    lost: int
    duplicated: int
    corrupted: int
    reused: int
    complete_maps: int

    @property
    def faults(self) -> int:
        return self.lost + self.duplicated + self.corrupted + self.reused


def whole(events: int) -> Tally:
    """Return the tally of a run of five devices without a fault."""
    return Tally(5 * events, lost=0, duplicated=0, corrupted=0, reused=0, complete_maps=events)


def tally(world: World, device_logs: list[list[dict]], data_dir: Path, events: int) -> Tally:
    """Compare the journal with the recordings replayed, event by event, and with the devices' own logs."""
    with contextlib.closing(sqlite3.connect(data_dir / "central.sqlite")) as database:
        rows = database.execute("SELECT device, boot, sequence, event, payload FROM record").fetchall()
        (complete,) = database.execute("SELECT count(DISTINCT event) FROM map WHERE NOT partial").fetchone()
    latents = world.latents()
    kept = Counter((device, event) for device, _, _, event, _ in rows)
    expected = {(device, event) for device in range(world.n_devices) for event in range(1, events + 1)}
    numbered = {(device, boot, sequence): event for device, boot, sequence, event, _ in rows}
    logged = [record for device, log in enumerate(device_logs) for record in recorded(device, log)]
    missing = expected - set(kept)
    missing |= {(key[0], event) for key, event in logged if numbered.get(key) != event}
    right = sum(
        (device, event) in expected and payload == latents[device][(event - 1) % len(world.gathers)]
        for device, _, _, event, payload in rows
    )
    return Tally(
        records=len(rows),
        lost=len(missing),
        duplicated=sum(count - 1 for count in kept.values()),
        corrupted=len(rows) - right,
        reused=len(logged) - len({key for key, _ in logged}),
        complete_maps=complete,
    )


def recorded(device: int, log: list[dict]) -> list[tuple[tuple[int, int, int], int]]:
    """((device, boot, sequence), event) of everything a device says it has recorded."""
    found = []
    boot = 0
    for row in log:
        if row["message"] == "started":
            boot = row["boot"]
        elif row["message"] == "recorded":
            found.append(((device, boot, row["sequence"]), row["event"]))
    return found
