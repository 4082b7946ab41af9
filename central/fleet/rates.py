"""Rates of devices: how many bytes their latents are to have, as the operator has set it, in the centre's file.

The command writes them (``rate_setting``), the running centre reads them once a second and puts them into what it
answers devices (``device_book``). A device with a rate of its own follows that, any other the one for all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from central.storage.database import connect, reported, transaction
from firmware_py.runtime.log import now_us

Key = tuple[int, int]
# In the place of survey and device: the rate for all.
ALL: Key = (-1, -1)


def read_rates(database: sqlite3.Connection) -> dict[Key, int]:
    """Bytes a latent by (survey, device), and of ``ALL``; SQLite's errors are the caller's."""
    return {
        (survey, device): latent_bytes
        for survey, device, latent_bytes in database.execute("SELECT survey, device, latent_bytes FROM rate")
    }


def rate_of(rates: Mapping[Key, int], key: Key) -> int | None:
    """What is set for a device; None where it is left to it."""
    return rates.get(key, rates.get(ALL))


def rates(data_dir: Path) -> dict[Key, int]:
    """All that is set. Raises ``StoreError``."""
    with closing(connect(data_dir)) as database, reported("rates: cannot be read"):
        return read_rates(database)


def keep_rate(data_dir: Path, key: Key, latent_bytes: int | None) -> None:
    """Set the rate of one device, or of ``ALL``, which takes the place of every one before; None takes back what was
    set. Raises ``StoreError``."""
    with closing(connect(data_dir, create=True)) as database, transaction(database, "rates: cannot be kept"):
        if key == ALL:
            database.execute("DELETE FROM rate")
        else:
            database.execute("DELETE FROM rate WHERE survey = ? AND device = ?", key)
        if latent_bytes is not None:
            database.execute("INSERT INTO rate VALUES (?,?,?,?)", (*key, latent_bytes, now_us()))
