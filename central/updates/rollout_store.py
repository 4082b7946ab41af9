"""Rollouts on the disk: the signed archive and the model in ``data_dir/rollouts/VERSION/``, the state in the
centre's file. The command writes them, the running centre takes them up.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from nacl.signing import SigningKey

from central.config import ModelSection
from central.errors import CentralError
from central.storage.database import StoreError, connect, lock, reported, transaction
from central.updates.signing import sign_bundle
from firmware_py.inference.bundle import Bundle, BundleError, load_bundle
from firmware_py.runtime.factory import check_same_survey
from firmware_py.runtime.log import now_us
from firmware_py.updates.archive import MAX_VERSION

FOLDER = "rollouts"
ARCHIVE = "archive"
# Held while one is made: two commands at once would take the same number.
LOCK_NAME = "rollout.lock"
# Stages: to some devices first, to all; stopped by a failure; another has taken its place.
CANARY, ALL, STOPPED, SUPERSEDED = "canary", "all", "stopped", "superseded"
# States of a device that has not answered for the new model yet.
OFFERED, DOWNLOADING = "offered", "downloading"
# A decoder is kept this long after the last record of its encoder: devices may have been without a link.
KEPT_DAYS = 30

Key = tuple[int, int]


class RolloutError(CentralError, ValueError):
    """A rollout that cannot be made: no released model, a version that is not higher."""


@dataclass
class DeviceState:
    """``state``: offered, downloading (``bytes`` of the archive so far), running, failed or declined."""

    state: str
    reason: str = ""
    bytes: int = 0
    changed_us: int = 0


@dataclass
class StoredRollout:
    """A rollout; ``devices`` by (survey, device) are those it was offered to."""

    version: int
    name: str
    model_hash: bytes
    created_us: int
    canaries: int
    stage: str
    reason: str
    devices: dict[Key, DeviceState] = field(default_factory=dict)


def model_section(data_dir: Path, version: int) -> ModelSection:
    """Where the bundle and the decoder of a rollout are."""
    folder = data_dir / FOLDER / str(version)
    return ModelSection(bundle=folder / "bundle", decoder=folder / "decoder")


def read_archive(data_dir: Path, version: int) -> bytes:
    """The signed archive of a rollout. Raises ``StoreError``."""
    path = data_dir / FOLDER / str(version) / ARCHIVE
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); roll the model out again") from None


def check_release(release: Path, models: Sequence[ModelSection] = ()) -> None:
    """Check that ``release`` is one conversion, for the survey that devices with one of ``models`` record.

    Raises ``RolloutError`` and ``BundleError``.
    """
    try:
        described = json.loads((release / "decoder" / "decoder.json").read_text())["model_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RolloutError(
            f"{release}: expected a folder with bundle/ and decoder/ as `epic convert` writes it"
        ) from None
    bundle = load_bundle(release / "bundle")
    if bundle.model_hash.hex() != described:
        raise RolloutError(
            f"{release}: the decoder is of encoder {described}, the bundle's is {bundle.model_hash.hex()}; "
            "give a bundle and a decoder of one conversion"
        )
    problems = [_mismatch(load_bundle(model.bundle), bundle) for model in models]
    if problems and all(problems):
        raise RolloutError(f"{release}: {min(problems, key=len)}; it fits no [[model]] of central.toml")


def _mismatch(current: Bundle, new: Bundle) -> str:
    """Why devices with ``current`` cannot take ``new``; empty where they can."""
    try:
        check_same_survey(current, new)
    except BundleError as error:
        return str(error)
    return ""


class RolloutStore:
    """One thread's view of the rollouts."""

    def __init__(self, data_dir: Path, create: bool = False) -> None:
        self._data_dir = data_dir
        self._database = connect(data_dir, create)

    def create(
        self,
        release: Path,
        key: SigningKey,
        version: int | None,
        canaries: int,
        boards: Sequence[str] = (),
    ) -> int:
        """Sign ``release`` (a folder with bundle/ and decoder/) and make it the rollout; returns its version.

        ``version`` is the next number unless given. Raises ``RolloutError``, ``BundleError``,
        ``StoreError``, with nothing left.
        """
        check_release(release)
        with closing(lock(self._data_dir, LOCK_NAME, "another `epic central rollout`")):
            last = self._last()
            version = last + 1 if version is None else version
            if not last < version <= MAX_VERSION:
                raise RolloutError(
                    f"version {version}: expected more than {last}, the last that was rolled out, as devices take "
                    f"no other; at most {MAX_VERSION}"
                )
            archive = sign_bundle(release / "bundle", key, version, boards)
            place = self._write(release, archive, version)
            try:
                self._enter(version, load_bundle(release / "bundle"), canaries)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
        return version

    def _last(self) -> int:
        """The highest number in use; also that of a folder without a row, which may be that of a newer file than this
        one: devices may have it, and it is not this command's to take away."""
        with reported("rollouts: cannot be read"):
            (last,) = self._database.execute("SELECT coalesce(max(version), 0) FROM rollout").fetchone()
        folders = (self._data_dir / FOLDER).glob("[0-9]*")
        return max([last, *(int(path.name) for path in folders if path.name.isdecimal())])

    def _write(self, release: Path, archive: bytes, version: int) -> Path:
        """The folder whole under its name, or not at all; returns it."""
        place = self._data_dir / FOLDER / str(version)
        # Not the name that a command which was killed may have left.
        fresh = place.with_name(f".{version}.{uuid4().hex}.new")
        try:
            fresh.mkdir(parents=True)
            for name in ("bundle", "decoder"):
                shutil.copytree(release / name, fresh / name)
            (fresh / ARCHIVE).write_bytes(archive)
            return fresh.rename(place)
        except OSError as error:
            raise StoreError(f"{place}: cannot be written ({error}); make room on the disk") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _enter(self, version: int, bundle: Bundle, canaries: int) -> None:
        stage = CANARY if canaries else ALL
        with transaction(self._database, f"rollout {version}: cannot be kept"):
            self._database.execute(
                "UPDATE rollout SET stage = ? WHERE stage IN (?, ?)", (SUPERSEDED, CANARY, ALL)
            )
            self._database.execute(
                "INSERT INTO rollout (version, name, model_hash, created_us, canaries, stage, reason)"
                " VALUES (?,?,?,?,?,?,'')",
                (version, bundle.name, bundle.model_hash, now_us(), canaries, stage),
            )

    def rollouts(self) -> list[StoredRollout]:
        """All rollouts with their devices, the newest first."""
        with reported("rollouts: cannot be read"):
            found = [
                StoredRollout(*row)
                for row in self._database.execute("SELECT * FROM rollout ORDER BY version DESC")
            ]
            by_version = {rollout.version: rollout for rollout in found}
            for version, survey, device, *state in self._database.execute(
                "SELECT * FROM rollout_device ORDER BY survey, device"
            ):
                by_version[version].devices[survey, device] = DeviceState(*state)
        return found

    def newest(self) -> tuple[int, str] | None:
        """Version and stage of the newest rollout; None before the first."""
        with reported("rollouts: cannot be read"):
            return self._database.execute(
                "SELECT version, stage FROM rollout ORDER BY version DESC LIMIT 1"
            ).fetchone()

    def version_of(self, model_hash: bytes) -> int | None:
        """The newest rollout of this model; None where it was never rolled out."""
        with reported("rollouts: cannot be read"):
            return self._database.execute(
                "SELECT max(version) FROM rollout WHERE model_hash = ?", (model_hash,)
            ).fetchone()[0]

    def keep_states(self, version: int, devices: dict[Key, DeviceState]) -> None:
        """Put what became of ``devices`` on the disk."""
        with transaction(self._database, f"rollout {version}: cannot be kept"):
            self._database.executemany(
                "INSERT OR REPLACE INTO rollout_device VALUES (?,?,?,?,?,?,?)",
                [(version, *key, d.state, d.reason, d.bytes, d.changed_us) for key, d in devices.items()],
            )

    def set_stage(self, version: int, stage: str, reason: str = "") -> None:
        """Go on to ``stage``, unless another rollout has taken the place of this one."""
        with transaction(self._database, f"rollout {version}: cannot be kept"):
            self._database.execute(
                "UPDATE rollout SET stage = ?, reason = ? WHERE version = ? AND stage IN (?, ?)",
                (stage, reason, version, CANARY, ALL),
            )

    def has_delivered(self, key: Key, model_hash: bytes) -> bool:
        """Whether the newest record of a device is of this model."""
        with reported("journal: cannot be read"):
            row = self._database.execute(
                "SELECT model_hash FROM record WHERE survey = ? AND device = ?"
                " ORDER BY boot DESC, sequence DESC LIMIT 1",
                key,
            ).fetchone()
        return row is not None and row[0] == model_hash

    def models_in_use(self) -> set[bytes]:
        """Hashes of models that records came of in the last ``KEPT_DAYS``."""
        with reported("journal: cannot be read"):
            return models_in_use(self._database)

    def close(self) -> None:
        self._database.close()


def models_in_use(database: sqlite3.Connection) -> set[bytes]:
    """Hashes of models that records came of in the last ``KEPT_DAYS``; SQLite's errors are the caller's."""
    since_us = now_us() - KEPT_DAYS * 86_400_000_000
    # By boot and not by record: it is asked before each start, of journals of any size.
    rows = database.execute("SELECT DISTINCT model_hash FROM device_boot WHERE received_us > ?", (since_us,))
    return {row[0] for row in rows}
