"""Store rollouts: archive and model in ``data_dir/rollouts/VERSION/``, the state in the centre's database.

The command writes rollouts; the running centre picks them up.
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
# Lock file of the command; two simultaneous commands would use the same number.
LOCK_NAME = "rollout.lock"
# Stages: some devices, all devices, stopped by a failure, replaced by another rollout.
CANARY, ALL, STOPPED, SUPERSEDED = "canary", "all", "stopped", "superseded"
# States of a device that has not answered for the new model yet.
OFFERED, DOWNLOADING = "offered", "downloading"
# Days to keep a decoder after its encoder's last record; devices may have been offline.
KEPT_DAYS = 30

Key = tuple[int, int]


class RolloutError(CentralError, ValueError):
    """The rollout cannot be created: no released model, or a version that is not higher."""


@dataclass
class DeviceState:
    """State of a device: offered, downloading (``bytes`` received), running, failed or declined."""

    state: str
    reason: str = ""
    bytes: int = 0
    changed_us: int = 0


@dataclass
class StoredRollout:
    """Rollout; ``devices`` by (survey, device) are those it was offered to."""

    version: int
    name: str
    model_hash: bytes
    created_us: int
    canaries: int
    stage: str
    reason: str
    devices: dict[Key, DeviceState] = field(default_factory=dict)


def model_section(data_dir: Path, version: int) -> ModelSection:
    """Return the paths of a rollout's bundle and decoder."""
    folder = data_dir / FOLDER / str(version)
    return ModelSection(bundle=folder / "bundle", decoder=folder / "decoder")


def numbered_folders(place: Path) -> list[int]:
    """Return the numbers that name folders in ``place``, ascending."""
    return sorted(int(path.name) for path in place.glob("[0-9]*") if path.name.isdecimal())


def rolled_out_sections(data_dir: Path) -> list[ModelSection]:
    """Return the paths of all rollouts' bundles and decoders, newest first."""
    return [model_section(data_dir, version) for version in reversed(numbered_folders(data_dir / FOLDER))]


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
            "give a bundle and a decoder from one conversion"
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
    """Rollout access of one thread."""

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
        """Sign ``release`` (a folder with bundle/ and decoder/) and make it the current rollout.

        Returns:
            Its version: ``version`` if given, else the next number.

        Raises:
            RolloutError: The release or the version is not valid.
            BundleError: The bundle is damaged.
            StoreError: The rollout cannot be stored. Nothing is left on the disk after any error.
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
        """Return the highest version in use, including folders without a row.

        Such a folder may come from a newer database than this one. Devices may have that version, so this command must
        not reuse it.
        """
        with reported("rollouts: cannot be read"):
            (last,) = self._database.execute("SELECT coalesce(max(version), 0) FROM rollout").fetchone()
        return max([last, *numbered_folders(self._data_dir / FOLDER)])

    def _write(self, release: Path, archive: bytes, version: int) -> Path:
        """Write the folder completely or not at all, and return it."""
        place = self._data_dir / FOLDER / str(version)
        # A unique name: a killed command may have left its temporary folder.
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
        """Return all rollouts with their devices, newest first."""
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
        """Return the version and stage of the newest rollout, or None."""
        with reported("rollouts: cannot be read"):
            return self._database.execute(
                "SELECT version, stage FROM rollout ORDER BY version DESC LIMIT 1"
            ).fetchone()

    def version_of(self, model_hash: bytes) -> int | None:
        """Return the newest rollout of this model, or None."""
        with reported("rollouts: cannot be read"):
            return self._database.execute(
                "SELECT max(version) FROM rollout WHERE model_hash = ?", (model_hash,)
            ).fetchone()[0]

    def keep_states(self, version: int, devices: dict[Key, DeviceState]) -> None:
        """Store the states of ``devices``."""
        with transaction(self._database, f"rollout {version}: cannot be kept"):
            self._database.executemany(
                "INSERT OR REPLACE INTO rollout_device VALUES (?,?,?,?,?,?,?)",
                [(version, *key, d.state, d.reason, d.bytes, d.changed_us) for key, d in devices.items()],
            )

    def set_stage(self, version: int, stage: str, reason: str = "") -> None:
        """Change to ``stage``, unless another rollout has replaced this one."""
        with transaction(self._database, f"rollout {version}: cannot be kept"):
            self._database.execute(
                "UPDATE rollout SET stage = ?, reason = ? WHERE version = ? AND stage IN (?, ?)",
                (stage, reason, version, CANARY, ALL),
            )

    def has_delivered(self, key: Key, model_hash: bytes) -> bool:
        """Return True if the newest record of a device is from this model."""
        with reported("journal: cannot be read"):
            row = self._database.execute(
                "SELECT model_hash FROM record WHERE survey = ? AND device = ?"
                " ORDER BY boot DESC, sequence DESC LIMIT 1",
                key,
            ).fetchone()
        return row is not None and row[0] == model_hash

    def models_in_use(self) -> set[bytes]:
        """Return the hashes of models with records in the last ``KEPT_DAYS``."""
        with reported("journal: cannot be read"):
            return models_in_use(self._database)

    def close(self) -> None:
        self._database.close()


def models_in_use(database: sqlite3.Connection) -> set[bytes]:
    """Return the hashes of models with records in the last ``KEPT_DAYS``; SQLite errors propagate."""
    since_us = now_us() - KEPT_DAYS * 86_400_000_000
    # Query boots, not records: this runs before each start, on journals of any size.
    rows = database.execute("SELECT DISTINCT model_hash FROM device_boot WHERE received_us > ?", (since_us,))
    return {row[0] for row in rows}
