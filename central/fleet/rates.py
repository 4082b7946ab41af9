"""Store the latent length that the operator has set, per device or for all.

The command writes the rates (``rate_setting``). The running centre reads them once a second and sends them in its
answers (``device_registry``). A device's own rate takes precedence over the common one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from central.storage.database import connect, reported, transaction
from firmware_py.runtime.log import now_us

Key = tuple[int, int]
# Key of the common rate, in place of (survey, device).
ALL: Key = (-1, -1)


def read_rates(database: sqlite3.Connection) -> dict[Key, int]:
    """Return bytes per latent by (survey, device), and of ``ALL``; SQLite errors propagate."""
    return {
        (survey, device): latent_bytes
        for survey, device, latent_bytes in database.execute("SELECT survey, device, latent_bytes FROM rate")
    }


def rate_of(rates: Mapping[Key, int], key: Key) -> int | None:
    """Return the rate set for a device, or None if the device chooses."""
    return rates.get(key, rates.get(ALL))


def rates(data_dir: Path) -> dict[Key, int]:
    """Return all rates that are set.

    Raises:
        StoreError: The database cannot be read.
    """
    with closing(connect(data_dir)) as database, reported("rates: cannot be read"):
        return read_rates(database)


def keep_rate(data_dir: Path, key: Key, latent_bytes: int | None) -> None:
    """Set the rate of one device, or of ``ALL``, which replaces all earlier ones; None removes the setting.

    Raises:
        StoreError: The database cannot be written.
    """
    with closing(connect(data_dir, create=True)) as database, transaction(database, "rates: cannot be kept"):
        if key == ALL:
            database.execute("DELETE FROM rate")
        else:
            database.execute("DELETE FROM rate WHERE survey = ? AND device = ?", key)
        if latent_bytes is not None:
            database.execute("INSERT INTO rate VALUES (?,?,?,?)", (*key, latent_bytes, now_us()))
