"""A backup is taken beside the work, holds all that a centre needs, and is restored whole or not at all."""

import json
import os
import shutil
import tarfile
import threading
from contextlib import closing

import numpy as np
import pytest
from fake_decoder import MODEL_HASH, latent_record
from page_maps import put_map
from releases import KEY, make_release
from waiting import wait_until

import epic
from central.learning import versions
from central.recordings.given import keep_given, read_given
from central.storage import backup as backup_module
from central.storage import schema
from central.storage.backup import BackupError, back_up, restore
from central.storage.database import StoreError, lock
from central.storage.journal import Journal
from central.storage.map_store import Store
from central.updates.rollout_store import RolloutStore, read_archive
from firmware_py.inference.bundle import load_bundle


@pytest.fixture
def filled(data_dir, tmp_path):
    """A store with records, a map, a rollout, an adapted decoder in use and a recording that an operator gave."""
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=d, event=7), 1, 94) for d in range(5)])
    put_map(data_dir, 7)
    bundle = load_bundle(make_release(tmp_path / "model" / "bundle", "new"))
    (tmp_path / "model" / "decoder").mkdir()
    (tmp_path / "model" / "decoder" / "decoder.json").write_text(
        json.dumps({"model_hash": bundle.model_hash.hex()})
    )
    with closing(RolloutStore(data_dir)) as rollouts:
        rollouts.create(tmp_path / "model", KEY, None, 0)
    adapted = data_dir / versions.FOLDER
    shutil.copytree(tmp_path / "model", adapted / "1")
    (adapted / versions.IN_USE).write_text('{"released": 1}')
    (adapted / ".work").mkdir()
    (adapted / ".work" / "half").write_text("unfinished")
    keep_given(data_dir, 1, 7, np.ones((5, 10, 3), np.float32))
    return data_dir


def test_what_is_restored_is_what_was_backed_up_models_and_recordings_included(filled, tmp_path):
    backup, other = tmp_path / "backup.tar", tmp_path / "other"
    manifest = back_up(filled, None, backup)
    assert (manifest["last_record"], manifest["maps"]) == (5, 1)
    assert restore(backup, other) == manifest
    with closing(Store(other)) as store:
        assert store.get(7).provenance["devices"] == [0, 1, 2, 3, 4]
    with closing(Journal(other)) as journal:
        assert len(journal.latents_of((1, 7, MODEL_HASH), 5)) == 5
    assert read_archive(other, 1) == read_archive(filled, 1)
    assert (other / "rollouts" / "1" / "decoder" / "decoder.json").exists()
    assert versions.version_section(other, 1).decoder.exists()
    assert versions.read_in_use(other) == {"released": 1}
    assert not (other / versions.FOLDER / ".work").exists()
    np.testing.assert_array_equal(read_given(other, 1, 7), np.ones((5, 10, 3)))
    left = [
        path.name for folder in (tmp_path, other) for path in folder.iterdir() if path.name.startswith(".")
    ]
    assert left == []


def test_a_backup_ends_while_records_come_and_is_of_one_moment(filled, tmp_path):
    """SQLite's own backup interface begins again with every commit, and never ended."""
    stop = threading.Event()
    came = []

    def receive():
        with closing(Journal(filled)) as journal:
            while not stop.wait(0.002):
                came.append(len(came))
                journal.commit([(latent_record(device=1, event=9, sequence=10 + len(came)), 1, 94)])

    receiving = threading.Thread(target=receive)
    receiving.start()
    try:
        wait_until(lambda: came, what="the first record")
        manifest = back_up(filled, None, tmp_path / "backup.tar")
    finally:
        stop.set()
        receiving.join()
    restore(tmp_path / "backup.tar", tmp_path / "other")
    with closing(Journal(tmp_path / "other")) as journal:
        assert journal.newest() == manifest["last_record"]


def test_files_that_change_or_go_while_it_is_taken_do_not_spoil_it(filled, tmp_path, monkeypatch):
    """A version is switched, and retention removes a recording, between the copy and the tar."""
    in_use, given = filled / versions.FOLDER / versions.IN_USE, filled / "recordings"
    write = backup_module._write

    def changed_first(*given_to_it):
        in_use.write_text("{}")
        shutil.rmtree(given)
        return write(*given_to_it)

    monkeypatch.setattr(backup_module, "_write", changed_first)
    back_up(filled, None, tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", tmp_path / "other")
    assert versions.read_in_use(tmp_path / "other") == {"released": 1}


def test_keys_are_in_it_on_request_and_stay_private(filled, tmp_path):
    keys = tmp_path / "keys"
    (keys / "allowed").mkdir(parents=True)
    (keys / "centre.secret").write_text("secret")
    (keys / "centre.secret").chmod(0o600)
    (tmp_path / "elsewhere.public").write_text("public")
    (keys / "centre.public").symlink_to(tmp_path / "elsewhere.public")
    back_up(filled, None, tmp_path / "without.tar")
    with tarfile.open(tmp_path / "without.tar") as tar:
        assert not [name for name in tar.getnames() if "keys" in name]
    backup = tmp_path / "with.tar"
    back_up(filled, keys, backup)
    assert backup.stat().st_mode & 0o077 == 0
    with pytest.raises(BackupError, match="holds keys; name a folder for them"):
        restore(backup, tmp_path / "other")
    with pytest.raises(BackupError, match="is not empty.*move that folder away"):
        restore(backup, tmp_path / "other", keys)
    restore(backup, tmp_path / "other", tmp_path / "other-keys")
    restored = tmp_path / "other-keys" / "centre.secret"
    assert restored.read_text() == "secret" and restored.stat().st_mode & 0o077 == 0
    assert (tmp_path / "other-keys" / "centre.public").read_text() == "public", "what a link leads to"


def test_nothing_that_is_there_is_overwritten(filled, tmp_path):
    backup = tmp_path / "backup.tar"
    back_up(filled, None, backup)
    with pytest.raises(BackupError, match="already exists; give another file"):
        back_up(filled, None, backup)
    with pytest.raises(BackupError, match="central.sqlite: already exists; expected an empty data_dir"):
        restore(backup, filled)
    held = lock((tmp_path / "busy").mkdir() or tmp_path / "busy")
    with pytest.raises(StoreError, match="another centre is running there"):
        restore(backup, tmp_path / "busy")
    held.close()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"SQLite format 3") + 5000] ^= 1
    path.write_bytes(content)


def newer(path):
    rewrite(path, {"schema_version": schema.VERSION + 1})


def rewrite(path, changes):
    """The same backup under another manifest."""
    with tarfile.open(path) as tar:
        tar.extractall(path.parent / "members", filter="data")
    manifest = path.parent / "members" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    path.unlink()
    with tarfile.open(path, "w") as tar:
        for name in ("manifest.json", "central.sqlite", "rollouts"):
            tar.add(path.parent / "members" / name, name)


def foreign(path):
    path.write_text("no backup")


def outside(path):
    with tarfile.open(path, "a") as tar:
        tar.add(path.parent / "central.toml", "../outside")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (cut, "not a whole backup|damaged or missing"),
        (flip, "central.sqlite is damaged or missing in it"),
        (newer, "expected at most .*newer EPIC"),
        (foreign, "not a whole backup|expected a file that"),
        (outside, "'../outside' is not in its manifest"),
        (shutil.rmtree, "cannot be read"),
    ],
)
def test_a_backup_that_is_not_whole_is_refused_and_leaves_nothing(filled, tmp_path, break_it, message):
    backup = tmp_path / "backup.tar"
    back_up(filled, None, backup)
    (tmp_path / "central.toml").write_text("")
    if break_it is shutil.rmtree:
        backup.unlink()
    else:
        break_it(backup)
    other = tmp_path / "other"
    with pytest.raises(BackupError, match=message):
        restore(backup, other)
    assert [path.name for path in other.iterdir()] in ([], ["central.lock"])
    assert not (tmp_path / "outside").exists()


def test_the_commands_move_a_centre_to_another_folder(filled, tmp_path, capsys):
    for name in ("data", "elsewhere"):
        (tmp_path / f"{name}.toml").write_text(
            f'[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "{name}"\n'
            '[[model]]\nbundle = "none"\ndecoder = "none"\n'
        )
    backup = str(tmp_path / "backup.tar")
    assert epic.main(["central", "backup", backup, "--config", str(tmp_path / "data.toml")]) == 0
    assert "records up to 5, 1 maps" in capsys.readouterr().out
    assert epic.main(["central", "restore", backup, "--config", str(tmp_path / "elsewhere.toml")]) == 0
    assert "elsewhere: records up to 5, 1 maps" in capsys.readouterr().out
    assert epic.main(["central", "show", "7", "--config", str(tmp_path / "elsewhere.toml")]) == 0
    assert epic.main(["central", "restore", backup, "--config", str(tmp_path / "elsewhere.toml")]) == 2


def test_the_doctor_misses_a_rollouts_decoder(filled, tmp_path, capsys):
    """What copying the database alone leaves: a centre that refuses every latent."""
    config = tmp_path / "central.toml"
    config.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\n'
        '[[model]]\nbundle = "none"\ndecoder = "none"\n'
    )
    (filled / "rollouts" / "1" / "decoder" / "decoder.keras").write_text("weights")
    epic.main(["doctor", "--config", str(config)])
    assert "rollout 1: new" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(filled / "rollouts")
    assert epic.main(["doctor", "--config", str(config)]) == 1
    assert "epic central restore" in (shown := " ".join(capsys.readouterr().out.split()))
    assert "rollout 1: " in shown
