"""What the doctor finds, each thing broken in turn."""

import json
import socket
import sqlite3
import time

import pytest
from tiny import ENCODER, bundle_fields

import epic
from central.database import FILE_NAME, lock
from central.doctor import AMISS, DOUBTFUL, WELL, examine
from central.journal import Journal
from central.keys import allow, new_keys
from firmware_py.bundle import create_bundle


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
        assert states[about] == WELL, found(config)[about]
    assert states["port"] == DOUBTFUL
    assert found(config)["keys"].said == "1 let in: device-0"


def test_every_finding_that_is_not_well_says_what_to_do(config):
    config.write_text("[central]\n")
    assert all(finding.advice for finding in examine(config) if finding.state != WELL)
    assert found(config)["configuration"].state == AMISS


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
            "cannot be opened",
        ),
    ],
)
def test_what_is_broken_is_found(config, tmp_path, about, break_it, said):
    kept = break_it(config, tmp_path)
    finding = found(config)[about]
    assert finding.state == AMISS
    assert said in finding.said
    assert finding.advice
    if kept is not None and hasattr(kept, "close"):
        kept.close()


def test_the_page_is_looked_at(config, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = f'127.0.0.1:{taken.getsockname()[1]}"'
        config.write_text(config.read_text().replace("[central]", f'[central]\npage = "{page}'))
        finding = found(config)["page"]
        assert (finding.state, "Address already in use" in finding.said) == (AMISS, True)
    assert found(config)["page"].state == WELL
    text = config.read_text()
    config.write_text(text.replace(page, '127.0.0.1:99999"'))
    assert found(config)["page"].state == AMISS
    config.write_text(text)
    held = lock(tmp_path / "data")
    assert "page" not in found(config), "the centre that is at work serves it"
    held.close()
    config.write_text(config.read_text().replace("page =", 'page_token_file = "none"\npage ='))
    assert found(config)["page"].state == AMISS and "page_token_file" in found(config)["page"].said


def test_damage_inside_the_store_is_found(config, tmp_path):
    path = tmp_path / "data" / FILE_NAME
    database = sqlite3.connect(path)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'record_of_event'").fetchone()
    (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(content)
    assert found(config)["store"].state == AMISS


def test_a_centre_at_work_is_recognised_and_left_alone(config, tmp_path):
    held = lock(tmp_path / "data")
    assert found(config)["centre"].said == "is at work with this configuration's data"
    assert "endpoint" not in found(config)
    held.close()
    assert found(config)["endpoint"].state == WELL


def test_a_clock_that_was_never_set_is_found(monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 5, 3, 1, 0)))
    assert found(None)["clock"].state == AMISS


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
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {WELL, DOUBTFUL, AMISS}
