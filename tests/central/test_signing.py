"""Signing at the centre, checking on the device: what is let through, and what is said of the rest."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tiny import ENCODER, bundle_fields

import epic
from central.updates.signing import SigningError, new_signing_key, read_signing_key, sign_bundle
from firmware_py.inference.bundle import create_bundle, load_bundle
from firmware_py.updates.archive import (
    ArchiveError,
    archive_bytes,
    read_verify_key,
    split_archive,
    unpack,
    verify_statement,
)

CREATED = "2026-11-24T12:00:00+00:00"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A signing key and the archive of a bundle with it."""
    folder = tmp_path_factory.mktemp("release")
    create_bundle(folder / "bundle", ENCODER, bundle_fields(), {"vectors.npz": b"not read here"})
    public, secret = new_signing_key(folder / "keys")
    key = read_signing_key(secret)
    return folder, key, read_verify_key(public), sign_bundle(folder / "bundle", key, 7, created=CREATED)


def test_an_archive_gives_the_same_bundle_back(released, tmp_path):
    folder, _, public, archive = released
    statement = unpack(archive, public, tmp_path / "out")
    assert (statement.version, statement.name, statement.created) == (7, "tiny", CREATED)
    assert statement.is_for("any-board")
    original, copy = load_bundle(folder / "bundle"), load_bundle(tmp_path / "out")
    assert copy.manifest == original.manifest
    assert copy.model_hash == original.model_hash == statement.model_hash
    assert len(archive) == archive_bytes(split_archive(archive)[0], statement.files_bytes)


def test_the_same_bundle_signed_again_is_the_same_archive(released):
    folder, key, _, archive = released
    assert sign_bundle(folder / "bundle", key, 7, created=CREATED) == archive


def test_boards_are_part_of_what_is_signed(released):
    folder, key, public, _ = released
    archive = sign_bundle(folder / "bundle", key, 7, ["raspberry-pi-5"])
    statement = verify_statement(*split_archive(archive)[:2], public)
    assert statement.is_for("raspberry-pi-5")
    assert not statement.is_for("esp32-s3")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_anywhere_is_refused_and_nothing_written(released, tmp_path, data):
    _, _, public, archive = released
    place = data.draw(st.integers(0, len(archive) - 1))
    changed = bytearray(archive)
    changed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArchiveError):
        unpack(bytes(changed), public, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_archive_cut_short_or_too_long_is_refused(released, tmp_path, data):
    _, _, public, archive = released
    length = data.draw(st.integers(0, len(archive) - 1))
    for wrong in (archive[:length], archive + archive[: length + 1]):
        with pytest.raises(ArchiveError):
            unpack(wrong, public, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_key_is_refused_with_what_to_do(released, tmp_path):
    archive = released[3]
    with pytest.raises(ArchiveError, match="signature is not of the key that this device trusts; sign it"):
        unpack(archive, SigningKey.generate().verify_key, tmp_path / "out")


def signed(key, **changes):
    """A statement that is well signed, with ``changes`` to its fields."""
    fields = {
        "format": "epic-update/1",
        "name": "n",
        "model_hash": "00" * 8,
        "version": 1,
        "created": CREATED,
        "boards": [],
        "files": [{"name": "a", "bytes": 1, "sha256": "0"}],
        **changes,
    }
    statement = json.dumps(fields).encode()
    return statement, key.sign(statement).signature, key.verify_key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "epic-update/2"}, "expected format epic-update/1, got 'epic-update/2'"),
        ({"version": 0}, "expected a version of 1 to 4294967295, got 0"),
        ({"version": "7"}, "expected a version of 1"),
        ({"version": True}, "expected a version of 1"),
        ({"files": None}, "the statement is not whole"),
        ({"files": []}, "expected files of at most"),
        ({"files": [{"name": "../a", "bytes": 1, "sha256": "0"}]}, "are not names in one folder"),
        ({"files": [{"name": "..", "bytes": 1, "sha256": "0"}]}, "are not names in one folder"),
        ({"files": [{"name": "a", "bytes": 1, "sha256": "0"}] * 2}, "are not names in one folder"),
        ({"files": [{"name": ["a"], "bytes": 1, "sha256": "0"}]}, "are not names in one folder"),
        ({"files": [{"name": "a", "bytes": float("inf"), "sha256": "0"}]}, "the statement is not whole"),
        ({"files": [{"name": "a", "bytes": -1, "sha256": "0"}]}, "expected files of at most"),
        ({"files": [{"name": "a", "bytes": 1 << 40, "sha256": "0"}]}, "expected files of at most"),
    ],
)
def test_a_statement_that_is_signed_but_impossible(changes, message):
    with pytest.raises(ArchiveError, match=message):
        verify_statement(*signed(SigningKey.generate(), **changes))


def test_a_statement_that_is_signed_but_nested_without_end():
    key = SigningKey.generate()
    statement = b"[" * 16_000
    with pytest.raises(ArchiveError, match="the statement is not whole"):
        verify_statement(statement, key.sign(statement).signature, key.verify_key)


def test_a_signing_key_is_private_and_never_replaced(tmp_path):
    public, secret = new_signing_key(tmp_path / "keys")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert read_signing_key(secret).verify_key == read_verify_key(public)
    before = secret.read_bytes()
    with pytest.raises(SigningError, match="already exists"):
        new_signing_key(tmp_path / "keys")
    assert secret.read_bytes() == before


def test_epic_keys_makes_the_signing_key(tmp_path, capsys):
    def new(*options):
        return epic.main(["keys", "new", "--keys", str(tmp_path / "keys"), *options])

    assert new("--signing") == 0
    read_signing_key(tmp_path / "keys" / "signing.secret")
    assert new("--signing") == 2
    assert "already exists" in capsys.readouterr().err
    assert new() == new("device-1", "--signing") == 2
    assert capsys.readouterr().err.count("error: expected a name or --signing") == 2


def test_signing_keys_at_fault(tmp_path):
    _, secret = new_signing_key(tmp_path)
    secret.chmod(0o644)
    with pytest.raises(SigningError, match="others may read it; run: chmod 600"):
        read_signing_key(secret)
    secret.write_text("short")
    secret.chmod(0o600)
    with pytest.raises(SigningError, match="expected a secret signing key of 64 hex digits"):
        read_signing_key(secret)
    with pytest.raises(SigningError, match="make a signing key with: epic keys new --signing"):
        read_signing_key(tmp_path / "none")
    with pytest.raises(ArchiveError, match="expected a public signing key of 64 hex digits"):
        read_verify_key(secret)


def test_the_statement_of_a_device_is_the_one_that_was_signed(released):
    archive, public = released[3], released[2]
    statement_bytes, signature, _ = split_archive(archive)
    statement = verify_statement(statement_bytes, signature, public)
    assert statement.encode() == statement_bytes
    assert replace(statement, version=8).encode() != statement_bytes


def test_c_sources_stay_at_home(tmp_path):
    sources = {"encoder.c": b"x" * 100_000, "encoder.h": b"y"}
    bundle = create_bundle(tmp_path / "bundle", ENCODER, bundle_fields(), sources)
    key = SigningKey.generate()
    archive = sign_bundle(bundle.folder, key, 1)
    assert len(archive) < 100_000
    unpack(archive, key.verify_key, tmp_path / "unpacked")
    assert load_bundle(tmp_path / "unpacked").model_hash == bundle.model_hash
    assert not (tmp_path / "unpacked" / "encoder.c").exists()
