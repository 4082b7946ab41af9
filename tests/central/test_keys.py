"""The key folder: who is let in, and that no half or exposed key ever counts."""

import errno
import json
import os
import stat
import time
from pathlib import Path

import pytest
import typer.testing
import zmq
from file_limit import no_file_left

from central.ingest.authentication import CurveAuthenticator
from central.security import keys
from central.security.keys import KeyRing, KeysError
from central.security.keys_cli import app
from firmware_py.runtime.log import Log


@pytest.fixture
def folder(tmp_path):
    keys.new_keys(tmp_path / "keys", "device-3")
    return tmp_path / "keys"


def public(folder, name):
    return (folder / name / f"{name}.public").read_bytes().strip()


def fresh(folder) -> KeyRing:
    return KeyRing(folder)


def test_what_is_made_is_a_pair_that_only_its_owner_can_read(folder):
    own = folder / "device-3"
    assert zmq.curve_public((own / "device-3.secret").read_bytes().strip()) == public(folder, "device-3")
    assert (own / "centre.public").read_bytes() == (folder / "centre.public").read_bytes()
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o644 if path.suffix == ".public" else 0o600), path


def test_nobody_is_let_in_until_allowed_and_nobody_after_being_revoked(folder):
    key = public(folder, "device-3")
    assert fresh(folder).identity(key) is None
    keys.allow(folder, "device-3")
    assert fresh(folder).identity(key) == keys.Identity("device-3", 1, 3)
    assert len(fresh(folder).secret(1, 3)) == keys.SECRET_BYTES
    gone = keys.revoke(folder, "device-3")
    assert fresh(folder).identity(key) is None
    assert fresh(folder).secret(1, 3) is None
    assert gone.read_bytes().strip() == key


def test_a_running_ring_sees_a_revocation(folder, monkeypatch):
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.0)
    keys.allow(folder, "device-3")
    ring = fresh(folder)
    key = public(folder, "device-3")
    assert ring.identity(key)
    keys.revoke(folder, "device-3")
    assert ring.identity(key) is None


def test_a_key_damaged_while_the_centre_runs_lets_nobody_in(folder, monkeypatch):
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.0)
    keys.allow(folder, "device-3")
    ring = fresh(folder)
    (folder / "allowed/device-3.public").write_bytes(b"short")
    assert ring.identity(public(folder, "device-3")) is None


def damage(folder):
    (folder / "allowed/device-3.public").write_bytes(b"short")


def expose(folder):
    (folder / "allowed/device-3.public").chmod(0o666)


@pytest.mark.parametrize("change", [lambda folder: keys.revoke(folder, "device-3"), damage, expose])
def test_keys_that_did_not_change_are_not_read_again_and_changed_ones_are(folder, monkeypatch, change):
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.0)
    monkeypatch.setattr(KeyRing, "SETTLED_NS", 0)
    keys.allow(folder, "device-3")
    ring = fresh(folder)
    key = public(folder, "device-3")
    with monkeypatch.context() as reading:
        reading.setattr(keys, "read_key", lambda path: pytest.fail(f"{path} read again"))
        assert ring.identity(key)
    # Times of change are those of the kernel's tick, at most 10 ms.
    time.sleep(0.02)
    change(folder)
    assert ring.identity(key) is None


def test_a_key_that_just_changed_is_read_again(folder, ring, monkeypatch):
    """A second change within the same tick of the kernel's clock would not show."""
    assert ring.identity(public(folder, "device-3"))
    monkeypatch.setattr(keys, "read_key", lambda path: b"another")
    assert ring.identity(b"another")


@pytest.fixture
def ring(folder, tmp_path, monkeypatch):
    """A ring that reads the folder each time it is asked; device 3 is let in."""
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.0)
    keys.allow(folder, "device-3")
    return KeyRing(folder, Log(tmp_path / "log.jsonl"))


def test_with_no_file_left_those_let_in_are_so_still_and_it_is_said_once(folder, tmp_path, ring):
    key = public(folder, "device-3")
    for _ in range(2):
        with no_file_left():
            assert ring.identity(key) == keys.Identity("device-3", 1, 3)
            assert len(ring.secret(1, 3)) == keys.SECRET_BYTES
        assert ring.identity(key)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["message"] for row in rows] == ["keys_not_read"] * 2, "once each time"
    assert "Too many open files" in rows[0]["reason"]


def test_with_the_last_file_taken_after_the_folder_was_listed_they_are_too(folder, ring, monkeypatch):
    key = public(folder, "device-3")

    def no_file(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", no_file)
    assert ring.identity(key) == keys.Identity("device-3", 1, 3)


def test_with_no_file_left_a_right_is_withdrawn_all_the_same(folder, ring):
    key = public(folder, "device-3")
    assert ring.identity(key)
    keys.revoke(folder, "device-3")
    with no_file_left():
        assert ring.identity(key) is None
        assert ring.secret(1, 3) is None


def test_with_no_file_left_zeromq_is_answered_who_may_come_in(folder, ring):
    """Its thread for keys dies of an error, and then nobody is let in again."""
    authenticator = CurveAuthenticator(folder)
    key = public(folder, "device-3")
    with no_file_left():
        assert authenticator.callback("*", key)
        assert not authenticator.callback("*", b"x" * 40)


def test_a_right_withdrawn_while_the_folder_is_read(folder, ring, monkeypatch):
    """The MAC secret goes after it was seen, whenever that is."""
    stat_of = Path.stat
    keys.new_keys(folder, "device-4")
    key = public(folder, "device-4")
    for looks in range(1, 4):
        keys.allow(folder, "device-4")
        mac = folder / "allowed" / "device-4.mac"
        seen = []

        def stat(path, mac=mac, seen=seen, looks=looks, **how):
            found = stat_of(path, **how)
            if path == mac:
                seen.append(path)
                if len(seen) == looks:
                    mac.unlink()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", stat)
            assert ring.identity(public(folder, "device-3")), "the others are heard"
        keys.revoke(folder, "device-4")
        assert ring.identity(key) is None and ring.secret(1, 4) is None


def test_a_folder_that_cannot_be_read_at_the_start_is_said(folder):
    keys.allow(folder, "device-3")
    with no_file_left(), pytest.raises(KeysError, match="allowed: cannot be read"):
        KeyRing(folder)


def test_names_stand_for_one_device_each():
    assert keys.identify("device-0") == keys.Identity("device-0", 1, 0)
    assert keys.identify("survey-2-device-7") == keys.Identity("survey-2-device-7", 2, 7)
    gateway = keys.identify("gateway-north")
    assert gateway.may_speak_for(9, 9)
    assert not keys.identify("device-0").may_speak_for(2, 0)
    for name in (
        "device-07",
        "survey-1-device-7",
        "device-65536",
        "device",
        "../centre",
        "Device-1",
        "gateway-",
    ):
        with pytest.raises(KeysError, match="write device-7|expected"):
            keys.identify(name)


def test_one_key_cannot_be_two_devices(folder):
    keys.allow(folder, "device-3")
    keys.new_keys(folder, "device-4")
    (folder / "device-4/device-4.public").write_bytes(public(folder, "device-3"))
    with pytest.raises(KeysError, match="device-3's"):
        keys.allow(folder, "device-4")


def test_keys_that_are_there_are_never_replaced(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(KeysError, match="already exists"):
        keys.new_keys(folder, "device-3")
    with pytest.raises(KeysError, match="already exists"):
        keys.new_centre(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_centre_does_not_take_keys_that_are_missing_exposed_or_no_pair(folder, tmp_path):
    keys.read_centre(folder)
    with pytest.raises(KeysError, match="epic keys new centre"):
        keys.read_centre(tmp_path / "nowhere")
    (folder / "centre.secret").chmod(0o644)
    with pytest.raises(KeysError, match="chmod 600"):
        keys.read_centre(folder)
    (folder / "centre.secret").chmod(0o600)
    (folder / "centre.public").write_bytes(public(folder, "device-3"))
    with pytest.raises(KeysError, match="pair"):
        keys.read_centre(folder)


@pytest.mark.parametrize("content", [b"", b"zz", b"00" * 31, b"\xff" * 64])
def test_a_mac_secret_that_is_none_is_refused_by_name(folder, content):
    (folder / "device-3/device-3.mac").write_bytes(content)
    with pytest.raises(KeysError, match=r"device-3\.mac: expected 32 bytes"):
        keys.allow(folder, "device-3")


def test_new_keys_without_a_mac_secret_leave_no_old_one_in_force(folder, tmp_path):
    keys.allow(folder, "device-3")
    keys.new_keys(tmp_path / "elsewhere", "device-3")
    source = tmp_path / "elsewhere" / "device-3"
    (source / "device-3.mac").unlink()
    arguments = ["allow", "device-3", str(source), "--keys", str(folder)]
    result = typer.testing.CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "device-3.mac: removed, since" in result.output
    ring = KeyRing(folder)
    assert ring.identity(public(source.parent, "device-3")).name == "device-3"
    assert ring.secret(1, 3) is None
    assert "removed" not in typer.testing.CliRunner().invoke(app, arguments).output


def test_the_command_line(tmp_path):
    runner = typer.testing.CliRunner()

    def epic_keys(*arguments):
        result = runner.invoke(app, [*arguments, "--keys", str(tmp_path / "k")])
        assert result.exit_code == 0, result.output
        return result.output

    epic_keys("new", "centre")
    epic_keys("new", "device-3")
    epic_keys("new", "gateway-a")
    epic_keys("allow", "device-3")
    epic_keys("allow", "gateway-a")
    epic_keys("revoke", "gateway-a")
    rows = json.loads(epic_keys("list", "--json"))
    assert [(row["name"], row["state"], row["mac"]) for row in rows] == [
        ("device-3", "allowed", True),
        ("gateway-a", "revoked", False),
    ]
    assert "device-3" in epic_keys("list")


def test_a_folder_in_which_others_may_write_lets_nobody_in(folder, monkeypatch):
    keys.allow(folder, "device-3")
    ring = fresh(folder)
    (folder / "allowed").chmod(0o777)
    with pytest.raises(KeysError, match="allowed: others may write in it; run: chmod 700"):
        fresh(folder)
    keys.new_keys(folder, "device-9")
    (folder / "allowed" / "device-9.public").write_bytes(public(folder, "device-9"))
    monkeypatch.setattr(ring, "REFRESH_S", 0.0)
    assert ring.identity(public(folder, "device-9")) is None
    assert ring.identity(public(folder, "device-3")), "what was read before holds"


def test_keys_that_others_may_replace_let_nobody_in(folder):
    """In the folder above, another user would put an `allowed` of their own in the place of ours."""
    keys.allow(folder, "device-3")
    folder.chmod(0o775)
    with pytest.raises(KeysError, match=f"{folder.name}: others may write in it; run: chmod 700"):
        fresh(folder)
    folder.chmod(0o755)
    assert fresh(folder).identity(public(folder, "device-3"))
    (folder / "allowed" / "device-3.public").chmod(0o666)
    with pytest.raises(KeysError, match="device-3.public: others may write it; run: chmod 644"):
        fresh(folder)


def test_a_linked_key_is_no_key(folder):
    (folder / "allowed").mkdir(mode=0o700)
    (folder / "allowed" / "device-3.public").symlink_to(folder / "device-3" / "device-3.public")
    with pytest.raises(KeysError, match="device-3.public: is a link; copy the file itself"):
        fresh(folder)


def test_a_revocation_is_on_the_disk_when_it_returns(folder, monkeypatch):
    keys.allow(folder, "device-3")
    synced = []
    real = os.fsync

    def note(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    keys.revoke(folder, "device-3")
    assert synced == [str(folder / "allowed"), str(folder / "revoked")]
