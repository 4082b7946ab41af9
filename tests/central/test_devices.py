"""What the centre knows of its devices, from what is in its file."""

import json
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, OTHER_HASH, latent_record

import epic
from central.fleet.device_registry import DeviceRegistry
from central.fleet.device_views import (
    LATE,
    NEVER_SEEN,
    ON_TIME,
    REVOKED,
    SILENT,
    devices,
    keep_allowed,
    keep_expected,
    state_of,
)
from central.fleet.devices_cli import _remarks
from central.storage.database import StoreError, connect
from central.storage.journal import Journal
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health, encode_health
from firmware_py.runtime.log import Log

T0_US = 1_700_000_000_000_000


def keep(data_dir, *records, received_us=T0_US + 3_000_000):
    with closing(Journal(data_dir)) as journal:
        journal.commit([(record, received_us, 60) for record in records])


def test_nothing_is_known_before_anything_came(data_dir):
    assert devices(data_dir) == []


def test_a_folder_without_a_centre_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="expected the data_dir of a centre that has run"):
        devices(tmp_path)


def test_a_device_without_a_clock_records_when_its_record_arrives(data_dir):
    keep(data_dir, latent_record(sample_time_us=0), received_us=T0_US)
    (view,) = devices(data_dir, at_us=T0_US + 10_000_000)
    assert (view.lag_s, view.age_s) == (0.0, 10.0)


def test_the_newest_record_tells_lag_age_and_place(data_dir):
    keep(
        data_dir,
        latent_record(device=2, boot=7, sequence=5, sample_time_us=T0_US),
        latent_record(device=2, boot=7, sequence=4, sample_time_us=T0_US - 9_000_000, model_hash=OTHER_HASH),
        latent_record(device=1, boot=1, sequence=1, sample_time_us=T0_US),
    )
    # Late, from before a restart: it counts, and changes nothing else.
    keep(data_dir, latent_record(device=2, boot=6, sequence=90), received_us=T0_US + 8_000_000)
    first, second = devices(data_dir, at_us=T0_US + 10_000_000)
    assert (first.device, second.device) == (1, 2)
    assert (second.boot, second.sequence, second.records) == (7, 5, 3)
    assert (second.lag_s, second.age_s) == (3.0, 10.0)
    assert second.model_hash == MODEL_HASH.hex()
    assert second.queue_depth is second.temperature_c is second.clock_offset_s is None


def test_groups_add_up_and_duplicates_count_once(data_dir):
    for sequence in (1, 2, 2, 3):
        keep(data_dir, latent_record(sequence=sequence))
    (view,) = devices(data_dir)
    assert (view.records, view.sequence) == (3, 3)


def test_a_failed_group_counts_nothing(data_dir):
    with closing(connect(data_dir)) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON record WHEN NEW.sequence = 2"
            " BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    with pytest.raises(StoreError):
        keep(data_dir, latent_record(sequence=1), latent_record(sequence=2))
    assert devices(data_dir) == []


def test_what_a_device_says_is_shown(data_dir):
    status = {
        "waiting": 4,
        "temperature_mc": 41_250,
        "clock_offset_us": -1500,
        "disk_free_mib": 2,
        "interval_s": 10,
        "rejected": 3,
        "rejection": "expected a gather (5, 1000, 70)",
    }
    with closing(connect(data_dir)) as database:
        database.execute(
            "INSERT INTO device VALUES (1, 0, ?, 100, 50, 2, 'why', ?)", (T0_US, json.dumps(status))
        )
    (view,) = devices(data_dir, at_us=T0_US + 31_000_000)
    assert (view.queue_depth, view.temperature_c, view.clock_offset_s) == (4, 41.25, -0.0015)
    assert (view.disk_free_bytes, view.bytes_received, view.bytes_sent) == (2 << 20, 100, 50)
    assert (view.refused, view.refusal, view.records, view.lag_s) == (2, "why", 0, None)
    assert (view.rejected, view.rejection) == (3, "expected a gather (5, 1000, 70)")
    assert any("rejected 3 recordings" in line and "(5, 1000, 70)" in line for line in _remarks(view))
    assert view.state == LATE, "31 s without a word, by its own 10 s"


def test_what_came_after_a_report_no_longer_waits(data_dir, tmp_path):
    """A device reports on connecting, before its first record arrives; nothing waits after that record."""
    book = DeviceRegistry(data_dir, lambda record: None, Log(tmp_path / "log.jsonl"))
    health = Health(interval_s=60, uptime_s=1, waiting=2, dropped=0, refused=0, next_sequence=3)
    book.handle(
        packet.Record(packet.HEALTH, 0, 1, 7, 1, model_hash=MODEL_HASH, payload=encode_health(health)), 60
    )
    with closing(connect(data_dir)) as database:
        book.keep(database)
    queue = lambda: [view.queue_depth for view in devices(data_dir)]  # noqa: E731
    assert queue() == [2]
    keep(data_dir, latent_record(boot=7, sequence=2))
    assert queue() == [2], "which of the two it was is not known while one is missing"
    keep(data_dir, latent_record(boot=7, sequence=1))
    assert queue() == [0]


@pytest.mark.parametrize(
    ("silent_s", "interval_s", "state"),
    [(0, 60, ON_TIME), (180, 60, ON_TIME), (181, 60, LATE), (600, 60, LATE), (601, 60, SILENT), (6, 1, LATE)],
)
def test_states_are_ages(silent_s, interval_s, state):
    assert state_of(silent_s, interval_s) == state


def test_devices_of_the_survey_that_were_never_heard_are_listed(data_dir):
    """Device 0 of five: 1 of 5 on time, and not 1 of 1."""
    keep_expected(data_dir, {MODEL_HASH.hex(): 5, OTHER_HASH.hex(): 9})
    assert devices(data_dir) == [], "of no survey yet"
    keep(data_dir, latent_record(device=0), received_us=T0_US)
    found = devices(data_dir, at_us=T0_US + 1_000_000)
    assert [(view.device, view.state) for view in found] == [(0, ON_TIME)] + [
        (d, NEVER_SEEN) for d in range(1, 5)
    ]
    assert all(view.last_seen_us == 0 and view.records == 0 for view in found[1:])
    (data_dir / "devices.json").write_text("damaged")
    assert [view.device for view in devices(data_dir)] == [0]


def test_devices_that_have_a_key_are_listed_before_anything_came(data_dir):
    keep_allowed(data_dir, {(1, 0), (2, 3)})
    assert [(view.survey, view.device, view.state) for view in devices(data_dir)] == [
        (1, 0, NEVER_SEEN),
        (2, 3, NEVER_SEEN),
    ]
    keep(data_dir, latent_record(device=0), received_us=T0_US)
    assert [view.state for view in devices(data_dir, at_us=T0_US + 1_000_000)] == [ON_TIME, NEVER_SEEN]


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(data_dir, tmp_path, monkeypatch, capsys, width):
    keep(data_dir, latent_record(device=0, boot=1_700_000_000))
    config = tmp_path / "central.toml"
    config.write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:1"\ninsecure = true\ndata_dir = "{data_dir}"\n'
        '[[model]]\nbundle = "b"\ndecoder = "d"\n'
    )
    monkeypatch.setenv("COLUMNS", str(width))
    assert epic.main(["central", "devices", "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[: next((i for i, line in enumerate(lines) if line.startswith("omitted")), len(lines))]
    assert max(map(len, table)) <= width
    assert not any("…" in line for line in table)
    assert (MODEL_HASH.hex() in "".join(table)) == (width == 200)


def test_a_device_whose_key_was_revoked_is_not_on_time(data_dir):
    keep(data_dir, latent_record(device=0), latent_record(device=1), received_us=T0_US)
    states = lambda: [view.state for view in devices(data_dir, at_us=T0_US + 1_000_000)]  # noqa: E731
    keep_allowed(data_dir, {(1, 0)})
    assert states() == [ON_TIME, REVOKED]
    keep_allowed(data_dir, {(1, 0), (1, 1)})
    assert states() == [ON_TIME, ON_TIME]
    keep_allowed(data_dir, None)
    assert states() == [ON_TIME, ON_TIME], "a centre without keys"


def test_a_revoked_device_is_named_in_the_log(data_dir, tmp_path):
    allowed = [frozenset({(1, 0), (1, 3)})]
    log = Log(tmp_path / "log.jsonl")
    book = DeviceRegistry(data_dir, lambda record: None, log, allowed=lambda: allowed[0])
    book.take_up_keys()
    allowed[0] = frozenset({(1, 0)})
    book.take_up_keys()
    book.take_up_keys()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert '"device_revoked"' in line and '"device": 3' in line
