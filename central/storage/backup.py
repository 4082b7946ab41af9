"""Back up a running centre into one file, and restore a data folder from it.

A backup is a tar of ``manifest.json``, a consistent snapshot of ``central.sqlite``, the folders ``FOLDERS`` and, on
request, ``keys/``. The manifest has the SHA-256 of every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from central.storage import schema
from central.storage.database import FILE_NAME, StoreError, connect, lock, reported
from firmware_py.runtime.log import now_us
from physics.files.atomic import sync

FORMAT = "epic-central-backup"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Folders of the data folder: models that were rolled out or adapted, and recordings that an operator gave.
FOLDERS = ("rollouts", "adapted", "recordings")
KEYS = "keys"
_CHUNK_BYTES = 1 << 20


class BackupError(StoreError):
    """A backup cannot be written, is incomplete, or cannot be restored."""


def back_up(data_dir: Path, keys_dir: Path | None, out: Path) -> dict[str, Any]:
    """Write a backup of ``data_dir`` to ``out``, including the keys in ``keys_dir`` if given.

    The file appears only when it is complete and on the disk.

    Returns:
        The manifest.

    Raises:
        BackupError: The backup cannot be written.
        StoreError: The database cannot be read.
    """
    if out.exists():
        raise BackupError(f"{out}: already exists; give another file, or remove that one")
    with contextlib.closing(connect(data_dir)) as database:
        try:
            # The staging folder is beside the backup, so the disk needs twice the backup's size.
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
                content = Path(aside) / "content"
                content.mkdir()
                with reported(f"{out}: the store cannot be copied"):
                    # Copy in one step: SQLite's backup interface starts over with every commit.
                    database.execute("VACUUM INTO ?", (str(content / FILE_NAME),))
                # After the database: a rollout's folder is written before its row.
                for name in FOLDERS:
                    _copy(data_dir / name, content / name)
                if keys_dir:
                    _copy(keys_dir, content / KEYS)
                manifest = _write(Path(aside) / "backup.tar", content)
                os.replace(Path(aside) / "backup.tar", out)
        except OSError as error:
            raise BackupError(
                f"{out}: cannot be written ({error.strerror or error}); free space there"
            ) from None
    sync(out.parent)
    return manifest


def _copy(folder: Path, target: Path) -> None:
    """Copy a folder if it exists, without unfinished (dot) files. A running centre may replace or remove files."""
    if folder.is_dir():
        shutil.copytree(
            folder, target, ignore=shutil.ignore_patterns(".*"), copy_function=_copy_unless_removed
        )


def _copy_unless_removed(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(source, target)


def _write(path: Path, content: Path) -> dict[str, Any]:
    """Write the tar of the folder ``content`` to ``path`` and return its manifest."""
    files = {
        file.relative_to(content).as_posix(): file for file in sorted(content.rglob("*")) if file.is_file()
    }
    with contextlib.closing(sqlite3.connect(files[FILE_NAME])) as database:
        version = schema.version_of(database)
        (records,) = database.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()
        (maps,) = database.execute("SELECT count(*) FROM map").fetchone()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "schema_version": version,
        "created_us": now_us(),
        "last_record": records,
        "maps": maps,
        "files": {name: _sha256(file) for name, file in files.items()},
    }
    described = path.with_name(MANIFEST)
    described.write_text(json.dumps(manifest, indent=1))
    with path.open("wb") as raw:
        # The backup may hold keys.
        os.fchmod(raw.fileno(), 0o600)
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for name, file in {MANIFEST: described, **files}.items():
                tar.add(file, name, recursive=False)
        raw.flush()
        os.fsync(raw.fileno())
    return manifest


def restore(backup: Path, data_dir: Path, keys_dir: Path | None = None) -> dict[str, Any]:
    """Restore ``data_dir`` from a backup, and ``keys_dir`` if the backup has keys. Restore everything or nothing.

    Returns:
        The manifest.

    Raises:
        BackupError: The backup is incomplete, or the target is not empty.
    """
    for place in (data_dir / name for name in (FILE_NAME, *FOLDERS)):
        if place.exists():
            raise BackupError(f"{place}: already exists; expected an empty data_dir. Move it away first")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.closing(lock(data_dir)),
            tempfile.TemporaryDirectory(dir=data_dir, prefix=".restore.") as aside,
        ):
            manifest = _unpack(backup, Path(aside))
            has_keys = (Path(aside) / KEYS).exists()
            if has_keys and keys_dir is None:
                raise BackupError(f"{backup}: holds keys; name a folder for them, [central] keys")
            if has_keys and keys_dir and keys_dir.exists() and any(keys_dir.iterdir()):
                raise BackupError(
                    f"{keys_dir}: is not empty, and {backup} holds keys; move that folder away first"
                )
            if has_keys and keys_dir:
                _place(Path(aside) / KEYS, keys_dir)
            for name in FOLDERS:
                if (Path(aside) / name).exists():
                    _place(Path(aside) / name, data_dir / name)
            # Place the database last. Without it, the centre would create an empty one and a second restore would be
            # refused.
            os.replace(Path(aside) / FILE_NAME, data_dir / FILE_NAME)
            sync(data_dir)
    except OSError as error:
        raise BackupError(f"{data_dir}: cannot be written ({error.strerror or error})") from None
    return manifest


def _place(source: Path, target: Path) -> None:
    """Move a folder to a path that is missing or empty, also across disks."""
    if target.exists():
        target.rmdir()
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def _unpack(backup: Path, folder: Path) -> dict[str, Any]:
    """Extract a backup into ``folder`` and verify each file against the manifest.

    Raises:
        BackupError: A file is missing or differs.
    """
    try:
        with tarfile.open(backup, mode="r:") as tar:
            members = iter(tar)
            first = next(members, None)
            manifest = _manifest(backup, tar, first)
            expected: dict[str, str] = manifest["files"]
            for member in members:
                source = tar.extractfile(member) if member.isfile() else None
                if member.name not in expected or source is None or not _is_inside(member.name):
                    raise BackupError(
                        f"{backup}: {member.name!r} is not in its manifest; take another backup"
                    )
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with source, path.open("xb") as out:
                    os.fchmod(out.fileno(), member.mode & 0o600 if member.name.startswith(KEYS) else 0o644)
                    shutil.copyfileobj(source, out, _CHUNK_BYTES)
                    out.flush()
                    os.fsync(out.fileno())
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{backup}: not a whole backup ({error}); take another") from None
    except FileExistsError as error:
        raise BackupError(f"{backup}: {error.filename} is in it twice; take another") from None
    except OSError as error:
        if error.filename == str(backup):
            raise BackupError(f"{backup}: cannot be read ({error.strerror})") from None
        raise
    for name, digest in expected.items():
        path = folder / name
        if not path.exists() or _sha256(path) != digest:
            raise BackupError(f"{backup}: {name} is damaged or missing in it; take another backup")
    return manifest


def _manifest(backup: Path, tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, Any]:
    source = tar.extractfile(member) if member and member.name == MANIFEST and member.isfile() else None
    try:
        manifest = json.loads(source.read(1 << 24)) if source else {}
        known = manifest.get("format") == FORMAT and FILE_NAME in manifest["files"]
    except (ValueError, KeyError, AttributeError, TypeError):
        known = False
    if not known:
        raise BackupError(f"{backup}: expected a file that `epic central backup` wrote")
    if manifest["format_version"] > FORMAT_VERSION or manifest["schema_version"] > schema.VERSION:
        raise BackupError(
            f"{backup}: schema version {manifest['schema_version']}: expected at most {schema.VERSION}; it is of a "
            "newer EPIC, install that one"
        )
    return manifest


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts[0] in (FILE_NAME, *FOLDERS, KEYS)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
