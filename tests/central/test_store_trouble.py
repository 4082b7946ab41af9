"""A store in trouble is one clear line, whoever opens it: damaged, read-only, cut short, without its log."""

import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, FakeDecoder, latent_record
from small_disk import small_disk
from waiting import wait_until

import epic
from central import service as module
from central.config import CentralConfig, CentralSection, ModelSection
from central.fleet.device_registry import DeviceRegistry
from central.fleet.device_views import devices
from central.service import Service
from central.storage.database import FILE_NAME, DamagedStoreError, StoreError, connect
from central.storage.journal import Journal
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health, encode_health
from firmware_py.runtime.log import Log


def settings(data_dir):
    central = CentralSection(listen="tcp://127.0.0.1:*", data_dir=data_dir, insecure=True, pictures=False)
    return CentralConfig(central=central, model=[ModelSection(bundle="none", decoder="none")])


def configured(folder):
    """A ``central.toml`` in ``folder`` whose models are looked for when it starts."""
    path = folder / "central.toml"
    path.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ndata_dir = "data"\ninsecure = true\n'
        '[[model]]\nbundle = "b"\ndecoder = "d"\n'
    )
    return path


def start(data_dir):
    return Service(settings(data_dir), {MODEL_HASH: FakeDecoder()}, Log(data_dir / "log"))


def refusal(data_dir):
    """The one line with which a centre does not start, and after which its service does not start it again."""
    with pytest.raises(DamagedStoreError) as found:
        start(data_dir)
    assert "\n" not in str(found.value) and FILE_NAME in str(found.value)
    return str(found.value)


def test_a_file_that_is_no_database(data_dir):
    (data_dir / FILE_NAME).write_bytes(b"no database at all" * 500)
    assert "file is not a database" in refusal(data_dir)


def test_a_database_of_a_newer_program(data_dir):
    with closing(connect(data_dir, create=True)) as database:
        database.execute("PRAGMA user_version = 99")
    assert "install that one" in refusal(data_dir)


def test_a_damaged_store_has_an_exit_code_of_its_own_and_a_folder_in_its_place_has_not(tmp_path, capsys):
    listing = ["central", "list", "--config", str(configured(tmp_path))]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE_NAME).write_bytes(b"no database at all" * 500)
    assert epic.main(listing) == DamagedStoreError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "file is not a database" in line and "epic central restore" in line
    (tmp_path / "data" / FILE_NAME).unlink()
    (tmp_path / "data" / FILE_NAME).mkdir()
    assert epic.main(listing) == 2


def test_a_centre_whose_clock_was_never_set_does_not_start(tmp_path, capsys, monkeypatch):
    """Devices without a clock would take 1970 from it."""
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 5, 3, 1, 0)))
    assert epic.main(["central", "run", "--config", str(configured(tmp_path))]) == 2
    assert "clock: 1970-01-01 00:00:05 UTC: expected 2026 or later" in capsys.readouterr().err


def test_a_database_that_was_cut_short(data_dir):
    with closing(connect(data_dir)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(data_dir / FILE_NAME, 5000)
    assert "malformed" in refusal(data_dir)


def test_a_read_only_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    with small_disk(place, "8m"):
        Journal(place / "data").close()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        with pytest.raises(StoreError, match="expected a writable folder with room|cannot be opened"):
            Journal(place / "data")


def test_a_log_that_was_removed_is_noticed_by_what_devices_say(data_dir, tmp_path):
    """The newest records are beside the file until they are moved into it."""
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=3, boot=1, sequence=n), 1, 60) for n in range(1, 11)])
        with closing(connect(data_dir)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        journal.commit([(latent_record(device=3, boot=1, sequence=n), 1, 60) for n in range(11, 32)])
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(data_dir / FILE_NAME, other)
    book = DeviceRegistry(other, lambda record: None, Log(tmp_path / "log"))
    health = Health(60, 1, 0, 0, 0, 32, acknowledged_boot=1, acknowledged_sequence=31)
    book.handle(packet.Record(packet.HEALTH, 3, 1, 1, 1, payload=encode_health(health)), 90)
    with closing(connect(other)) as database:
        book.keep(database)
    (view,) = devices(other)
    assert (view.records, view.acknowledged_lost) == (10, 21)
    assert '"acknowledged_lost"' in (tmp_path / "log").read_text()


def test_systemd_hears_that_it_is_ready_and_nothing_more_once_a_thread_hangs(tmp_path, monkeypatch):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(20.0)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "800000")
        service = start(tmp_path)
        running = threading.Thread(target=service.run)
        running.start()
        try:
            assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            monkeypatch.setattr(module, "STUCK_S", -1.0)
            systemd.settimeout(1.5)

            def is_quiet():
                try:
                    return not systemd.recv(100)
                except TimeoutError:
                    return True

            wait_until(is_quiet, what="silence")
        finally:
            service.stop()
            running.join()
