"""Define the database schema by version, and migrate older files when they are opened.

``PRAGMA user_version`` holds the version. 0 is a new file, or one from before versions were counted. A released
migration never changes. A schema change adds a migration, and a file of the previous version in
``tests/central/golden``.
"""

from __future__ import annotations

import sqlite3

from central.errors import CentralError

# ``device_boot`` columns up to ``model_hash`` describe the record with the highest number. A number up to ``scanned``
# that is in no ``gap`` has arrived, whether or not its record was deleted. ``records`` is 0 in a forgotten boot.
_VERSION_1 = """
CREATE TABLE IF NOT EXISTS record (
    id INTEGER PRIMARY KEY,
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    event INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    sample_time_us INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    wire_bytes INTEGER NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (survey, device, boot, sequence)
);
CREATE INDEX IF NOT EXISTS record_of_event ON record (survey, event, model_hash);
CREATE TABLE IF NOT EXISTS map (
    survey INTEGER NOT NULL,
    event INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    revision INTEGER NOT NULL,
    last_record INTEGER NOT NULL,
    partial INTEGER NOT NULL,
    provenance TEXT NOT NULL,
    n_depth INTEGER NOT NULL,
    n_width INTEGER NOT NULL,
    velocity BLOB NOT NULL,
    uncertainty BLOB NOT NULL,
    PRIMARY KEY (survey, event, model_hash, revision)
);
CREATE TABLE IF NOT EXISTS device_boot (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    records INTEGER NOT NULL,
    highest INTEGER NOT NULL,
    sample_time_us INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    scanned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (survey, device, boot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    heard_us INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    bytes_sent INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    refusal TEXT NOT NULL,
    status TEXT NOT NULL,
    PRIMARY KEY (survey, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rate (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    latent_bytes INTEGER NOT NULL,
    set_us INTEGER NOT NULL,
    PRIMARY KEY (survey, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gap (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    PRIMARY KEY (survey, device, boot, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollout (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    model_hash BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    canaries INTEGER NOT NULL,
    stage TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS rollout_device (
    version INTEGER NOT NULL,
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    changed_us INTEGER NOT NULL,
    PRIMARY KEY (version, survey, device)
);
INSERT INTO device_boot (survey, device, boot, records, highest, sample_time_us, received_us, model_hash)
SELECT survey, device, boot, count(*), max(sequence), sample_time_us, received_us, model_hash FROM record
WHERE NOT EXISTS (SELECT 1 FROM device_boot) GROUP BY survey, device, boot;
"""

# SQL expression, true if a person should review the map. Provenance that is not JSON must not block the insert.
FLAGGED = (
    "(CASE WHEN json_valid(provenance) THEN coalesce(json_extract(provenance, '$.replaced'), 0) > 0"
    " OR coalesce(json_array_length(provenance, '$.flags'), 0) > 0 ELSE 0 END)"
)
# Time of the map's check by forward modelling; null before the check, 0 if the provenance is not JSON.
CHECKED_US = (
    "(CASE WHEN NOT json_valid(provenance) THEN 0 WHEN json_type(provenance, '$.consistency') IS NOT NULL"
    " THEN coalesce(json_extract(provenance, '$.consistency.checked_us'), 0) END)"
)
# SQL expression, true if the map was refined by waveform inversion; latents cannot reproduce it.
REFINED = "(json_valid(provenance) AND json_type(provenance, '$.refinement') IS NOT NULL)"
DECODED_US = "(CASE WHEN json_valid(provenance) THEN json_extract(provenance, '$.decoded_us') END)"

# A map with a checksum is compressed (``map_codec``). One without is raw float32, from version 1. ``record_of_device``
# finds each device's newest latent of an event, ``map_newest`` an event's newest map. ``changed`` is the id of the last
# record received of a boot.
_VERSION_2 = f"""
ALTER TABLE record ADD COLUMN checksum INTEGER;
ALTER TABLE map ADD COLUMN checksum INTEGER;
ALTER TABLE device_boot ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
CREATE TABLE forgotten (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL
);
CREATE INDEX record_of_device ON record (survey, event, model_hash, device, boot, sequence);
CREATE INDEX boot_changed ON device_boot (changed);
CREATE INDEX map_newest ON map (survey, event, last_record);
CREATE INDEX IF NOT EXISTS map_of_event ON map (event, survey, model_hash, last_record);
CREATE INDEX IF NOT EXISTS map_of_survey ON map (survey);
CREATE INDEX IF NOT EXISTS partial_map ON map (partial) WHERE partial = 1;
CREATE INDEX IF NOT EXISTS flagged_map ON map ({FLAGGED});
CREATE INDEX IF NOT EXISTS checked_map ON map ({CHECKED_US});
"""

# A device's part of a fetched recording is the concatenation of its pieces; it counts only in state ``kept``.
# ``recording_use`` has the bytes received per day (days since 1970, UTC). ``fetch_seen`` is the last map that the
# policy of [fetch] has looked at.
_VERSION_3 = """
CREATE TABLE recording (
    survey INTEGER NOT NULL,
    event INTEGER NOT NULL,
    device INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    asked_by TEXT NOT NULL,
    sample_time_us INTEGER NOT NULL,
    misfit_ppm INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    part_bytes INTEGER NOT NULL,
    wire_bytes INTEGER NOT NULL,
    asked_us INTEGER NOT NULL,
    changed_us INTEGER NOT NULL,
    PRIMARY KEY (survey, event, device)
) WITHOUT ROWID;
CREATE INDEX recording_wanted ON recording (asked_us) WHERE state IN ('asked', 'coming');
CREATE TABLE recording_piece (
    survey INTEGER NOT NULL,
    event INTEGER NOT NULL,
    device INTEGER NOT NULL,
    start INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (survey, event, device, start)
);
CREATE TABLE recording_use (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    day INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (survey, device, day)
) WITHOUT ROWID;
CREATE TABLE fetch_seen (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    map INTEGER NOT NULL
);
"""

# ``gather`` is the file of a given recording as the operator named it. Numbers are not used twice.
_VERSION_4 = """
CREATE TABLE refinement_job (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    survey INTEGER NOT NULL,
    event INTEGER NOT NULL,
    source TEXT NOT NULL,
    gather TEXT NOT NULL,
    gather_sha256 TEXT NOT NULL,
    iterations INTEGER NOT NULL,
    prior TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    revision INTEGER,
    interruptions INTEGER NOT NULL,
    queued_us INTEGER NOT NULL,
    started_us INTEGER NOT NULL,
    changed_us INTEGER NOT NULL
);
CREATE INDEX refinement_open ON refinement_job (state, number) WHERE state IN ('waiting', 'running');
"""

MIGRATIONS = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4)
VERSION = len(MIGRATIONS)


class SchemaError(CentralError, RuntimeError):
    """The file has a newer version, or another schema."""


def version_of(database: sqlite3.Connection) -> int:
    """Return a file's schema version.

    Raises:
        SchemaError: The file is newer than this program.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise SchemaError(
            f"schema version {version}: expected at most {VERSION}; the file is of a newer EPIC, install that one"
        )
    return version


def migrate(database: sqlite3.Connection) -> None:
    """Migrate a file to ``VERSION``, completely or not at all.

    Raises:
        SchemaError: The file is newer, or has another schema.
        sqlite3.Error: The migration failed.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        # Check again within the transaction: another process may have migrated first.
        for number in range(version_of(database), VERSION):
            for statement in MIGRATIONS[number].split(";"):
                if statement.strip():
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {number + 1}")
        check(database)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def check(database: sqlite3.Connection) -> None:
    """Raise ``SchemaError`` if a table's columns differ from this version's."""
    fresh = sqlite3.connect(":memory:")
    try:
        for text in MIGRATIONS:
            fresh.executescript(text)
        for table, expected in _columns(fresh).items():
            if (found := _columns(database).get(table)) != expected:
                raise SchemaError(
                    f"table {table}: expected columns {', '.join(expected)}; found "
                    f"{', '.join(found) if found else 'no such table'}; install the EPIC that wrote the file, or "
                    "restore a backup"
                )
    finally:
        fresh.close()


def _columns(database: sqlite3.Connection) -> dict[str, list[str]]:
    rows = database.execute(
        "SELECT t.name, c.name FROM sqlite_master AS t, pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
    )
    tables: dict[str, list[str]] = {}
    for table, column in rows:
        tables.setdefault(table, []).append(column)
    return tables
