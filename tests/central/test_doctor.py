"""What the doctor finds, each thing broken in turn."""

import contextlib
import json
import resource
import socket
import sqlite3
import time
from functools import partial

import pytest
from fake_decoder import latent_record
from queries import asked_by
from tiny import ENCODER, bundle_fields

import epic
from central import doctor
from central.doctor import FAIL, OK, WARN, examine
from central.security.keys import allow, new_keys
from central.storage.database import FILE_NAME, LOCK_NAME, lock
from central.storage.journal import Journal
from firmware_py.inference.bundle import create_bundle


@pytest.fixture
def config(tmp_path):
    """A centre that could run: keys, a model, a free port, data of an earlier run."""
    create_bundle(tmp_path / "bundle", ENCODER, bundle_fields())
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "decoder.keras").write_bytes(b"weights")
    new_keys(tmp_path / "keys", "device-0")
    allow(tmp_path / "keys", "device-0")
    Journal(tmp_path / "data").close()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = tmp_path / "central.toml"
    path.write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:{port}"\ndata_dir = "data"\nkeys = "keys"\n'
        f'[[model]]\nbundle = "bundle"\ndecoder = "decoder"\n[gateway]\nports = ["/dev/nothing"]\n'
    )
    return path


def found(config):
    return {finding.about.split(" /")[0]: finding for finding in examine(config)}


def test_what_is_well_is_said_to_be(config):
    states = {about: finding.state for about, finding in found(config).items()}
    for about in ("Python", "extra central", "configuration", "keys", "model", "endpoint", "disk", "store"):
        assert states[about] == OK, found(config)[about]
    assert states["port"] == WARN
    assert found(config)["keys"].said == "1 allowed: device-0"


def test_every_finding_that_is_not_well_says_what_to_do(config):
    config.write_text("[central]\n")
    assert all(finding.advice for finding in examine(config) if finding.state != OK)
    assert found(config)["configuration"].state == FAIL


def break_port(config, folder):
    port = int(config.read_text().split("127.0.0.1:")[1].split('"')[0])
    return socket.create_server(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("about", "break_it", "said"),
    [
        ("endpoint", break_port, "Address already in use"),
        ("keys", lambda config, folder: (folder / "keys" / "centre.secret").unlink(), "cannot be read"),
        ("keys", lambda config, folder: (folder / "keys" / "centre.secret").chmod(0o644), "centre.secret"),
        (
            "model",
            lambda config, folder: (folder / "bundle" / "encoder.tflite").write_bytes(b"x"),
            "encoder.tflite",
        ),
        ("model", lambda config, folder: (folder / "decoder" / "decoder.keras").unlink(), "not found"),
        (
            "store",
            lambda config, folder: (folder / "data" / FILE_NAME).write_bytes(b"x" * 5000),
            "not a database",
        ),
    ],
)
def test_what_is_broken_is_found(config, tmp_path, about, break_it, said):
    kept = break_it(config, tmp_path)
    finding = found(config)[about]
    assert finding.state == FAIL
    assert said in finding.said
    assert finding.advice
    if kept is not None and hasattr(kept, "close"):
        kept.close()


def test_the_page_is_looked_at(config, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = f'127.0.0.1:{taken.getsockname()[1]}"'
        config.write_text(config.read_text().replace("[central]", f'[central]\npage_listen = "{page}'))
        finding = found(config)["page"]
        assert (finding.state, "Address already in use" in finding.said) == (FAIL, True)
    assert found(config)["page"].state == OK
    text = config.read_text()
    config.write_text(text.replace(page, '127.0.0.1:99999"'))
    assert found(config)["configuration"].state == FAIL
    config.write_text(text)
    held = lock(tmp_path / "data")
    assert "page" not in found(config), "the centre that is at work serves it"
    held.close()
    config.write_text(config.read_text().replace("page_listen =", 'page_token_file = "none"\npage_listen ='))
    assert found(config)["page"].state == FAIL and "page_token_file" in found(config)["page"].said


def damage(folder, name):
    """Overwrite the first page of a table or index."""
    path = folder / "data" / FILE_NAME
    database = sqlite3.connect(path)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["record_of_event", "sqlite_autoindex_record_1", "record", "map"])
def test_damage_anywhere_in_the_store_is_found_by_who_reads_it_through(config, tmp_path, name):
    """Some is found by SQLite's check, some ends the count."""
    damage(tmp_path, name)
    (store,) = (finding for finding in examine(config, full=True) if finding.about == "store")
    assert store.state == FAIL


def cut_short(folder):
    path = folder / "data" / FILE_NAME
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("break_it", [cut_short, partial(damage, name="record"), partial(damage, name="map")])
def test_damage_that_is_met_on_the_way_is_a_finding(config, tmp_path, break_it, capsys):
    break_it(tmp_path)
    assert found(config)["store"].state == FAIL
    assert epic.main(["doctor", "--config", str(config)]) == 1
    assert "central.sqlite" in capsys.readouterr().out


def test_only_who_is_thorough_reads_the_whole_store(config, monkeypatch):
    """It is asked before each start and every minute, of stores of any size."""
    asked = asked_by(monkeypatch, doctor)
    assert found(config)["store"].said == "0 records, 0 maps; opened, not read through (--full)"
    assert asked and not [query for query in asked if "quick_check" in query or "count(" in query]
    said = [finding.said for finding in examine(config, full=True) if finding.about == "store"]
    assert said == ["0 records, 0 maps; read through, no damage"]


def test_how_much_is_kept_is_told_without_counting(config, tmp_path):
    journal = Journal(tmp_path / "data")
    journal.commit([(latent_record(sequence=n), 1, 100) for n in (1, 2, 3)])
    journal.close()
    assert found(config)["store"].said.startswith("3 records, 0 maps")


def test_a_store_is_only_looked_at(config, tmp_path):
    database = sqlite3.connect(tmp_path / "data" / FILE_NAME)
    database.execute("DROP INDEX map_of_event")
    examine(config, full=True)
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    database.close()
    assert "record" in names and "map_of_event" not in names


def test_a_full_disk_is_a_finding(config):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        disk = found(config)["disk"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk.state == FAIL and "cannot be written" in disk.said and "make room" in disk.advice


def test_what_keeps_it_from_asking_is_not_taken_for_a_centre(config, tmp_path):
    (tmp_path / "data" / LOCK_NAME).mkdir()
    centre = found(config)["centre"]
    assert centre.state == FAIL and "cannot be read" in centre.said
    assert "user of the centre" in centre.advice


def test_a_centre_at_work_is_recognised_and_left_alone(config, tmp_path):
    held = lock(tmp_path / "data")
    assert found(config)["centre"].said == "is running with this configuration's data"
    assert "endpoint" not in found(config)
    held.close()
    assert found(config)["endpoint"].state == OK


def test_a_clock_that_was_never_set_is_found(monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 5, 3, 1, 0)))
    assert found(None)["clock"].state == FAIL


def test_nothing_is_left_behind(config, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    examine(config)
    after = sorted(
        path.name for path in tmp_path.rglob("*") if not path.name.endswith((".lock", "-wal", "-shm"))
    )
    assert after == [name for name in before if not name.endswith((".lock", "-wal", "-shm"))]


def test_the_command_says_it_in_both_forms(config, capsys):
    assert epic.main(["doctor", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "store: 0 records, 0 maps" in out and "→" in out
    (config.parent / "keys" / "centre.secret").unlink()
    assert epic.main(["doctor", "--config", str(config), "--json"]) == 1
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {OK, WARN, FAIL}
