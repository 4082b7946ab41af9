"""Keep adapted decoders in ``data_dir/adapted/VERSION/``, and which of them is in use.

A version holds ``bundle/`` (the devices' own encoder, naming this decoder), ``decoder/`` and ``adaptation.json``.
``in-use.json`` maps the SHA-256 of a released decoder to the version in its place. A release that replaces it in
central.toml is therefore never overridden by an older adaptation.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from central.config import ModelSection
from central.errors import CentralError
from central.storage.database import lock
from central.updates.rollout_store import numbered_folders, rolled_out_sections
from firmware_py.inference.bundle import Bundle, copy_for_decoder, load_bundle
from firmware_py.runtime.log import now_us
from physics.files.atomic import atomic_write, sync, sync_tree

FOLDER = "adapted"
RECORD = "adaptation.json"
IN_USE = "in-use.json"
# Lock files of an adaptation and of the commands that switch; a switch need not wait for an adaptation.
LOCK_NAME, SWITCH_LOCK_NAME = "adapt.lock", "adapt-switch.lock"
# Number of the released decoder in lists and commands.
RELEASED = 0


class AdaptationError(CentralError, ValueError):
    """The decoder cannot be adapted as asked, or there is no such version."""


class AdaptationRejectedError(AdaptationError):
    """The adapted decoder has failed the gate; nothing was written."""


@dataclass(frozen=True)
class Version:
    """An adapted decoder; ``record`` is the content of its ``adaptation.json``."""

    number: int
    record: dict[str, Any]

    @property
    def released_sha256(self) -> str:
        return self.record["released_sha256"]


def version_section(data_dir: Path, number: int) -> ModelSection:
    """Return the paths of a version's bundle and decoder."""
    folder = data_dir / FOLDER / str(number)
    return ModelSection(bundle=folder / "bundle", decoder=folder / "decoder")


def section_in_use(data_dir: Path, section: ModelSection) -> ModelSection:
    """Return the adapted version in use in place of a released ``section``, or ``section`` itself.

    Raises:
        AdaptationError: ``in-use.json`` is damaged.
        BundleError: The released bundle is damaged.
    """
    in_use = read_in_use(data_dir)
    if not in_use:
        return section
    number = in_use.get(str(load_bundle(section.bundle).manifest.get("decoder_sha256")), RELEASED)
    return version_section(data_dir, number) if number else section


def read_in_use(data_dir: Path) -> dict[str, int]:
    """Return the versions in use by the SHA-256 of the released decoder. Raises ``AdaptationError``."""
    path = data_dir / FOLDER / IN_USE
    try:
        return {str(sha256): int(number) for sha256, number in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise AdaptationError(
            f"{path}: cannot be read ({error}); remove it to return to the released decoders"
        ) from None


def list_versions(data_dir: Path) -> list[Version]:
    """Return all versions, oldest first. Raises ``AdaptationError`` for a damaged one."""
    return [read_version(data_dir, number) for number in numbered_folders(data_dir / FOLDER)]


def read_version(data_dir: Path, number: int) -> Version:
    """Return one version. Raises ``AdaptationError``."""
    path = data_dir / FOLDER / str(number) / RECORD
    try:
        record = json.loads(path.read_text())
        return Version(int(record["version"]), {**record, "released_sha256": str(record["released_sha256"])})
    except FileNotFoundError:
        known = numbered_folders(data_dir / FOLDER)
        raise AdaptationError(
            f"version {number}: expected one of {', '.join(map(str, known)) or 'none yet'}; make one with: "
            "epic central adapt"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdaptationError(
            f"{path}: cannot be read ({error!r}); restore the folder, or remove it"
        ) from None


def use_version(data_dir: Path, number: int, released_sha256: str | None = None) -> None:
    """Put a version in use, or with 0 the released decoder ``released_sha256``; a running centre follows.

    Raises:
        AdaptationError: There is no such version.
        InUseError: Another such command is running.
    """
    if number != RELEASED:
        version = read_version(data_dir, number)
        released_sha256 = version.released_sha256
        load_bundle(version_section(data_dir, number).bundle)
    with closing(lock(data_dir, SWITCH_LOCK_NAME, "another `epic central adapt use`")):
        in_use = read_in_use(data_dir)
        if number == RELEASED:
            in_use.pop(str(released_sha256), None)
        else:
            in_use[str(released_sha256)] = number
        path = data_dir / FOLDER / IN_USE
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(in_use, indent=2))


def roll_back(data_dir: Path) -> tuple[int, int]:
    """Return to the decoder from which the one in use was adapted.

    Returns:
        The version that was in use, and the one that is now.

    Raises:
        AdaptationError: No adapted decoder is in use, or several are.
        InUseError: Another such command is running.
    """
    in_use = read_in_use(data_dir)
    if len(in_use) != 1:
        found = ", ".join(map(str, sorted(in_use.values()))) or "none"
        raise AdaptationError(
            f"rollback: expected one adapted decoder in use, found {found}; name the version: epic central adapt use"
        )
    ((released_sha256, number),) = in_use.items()
    parent = int(read_version(data_dir, number).record["parent_version"])
    use_version(data_dir, parent, released_sha256)
    return number, parent


def released_section(data_dir: Path, models: Sequence[ModelSection], sha256: str) -> ModelSection:
    """Return the configured or rolled-out release with the decoder ``sha256``.

    Raises:
        AdaptationError: No configured or rolled-out release has this decoder.
        BundleError: A bundle is damaged.
    """
    for section in (*models, *rolled_out_sections(data_dir)):
        if load_bundle(section.bundle).manifest.get("decoder_sha256") == sha256:
            return section
    raise AdaptationError(
        f"released decoder {sha256[:16]}…: expected in a [[model]] or a rollout, found in none; add its [[model]] again"
    )


def publish(
    data_dir: Path,
    bundle: Bundle,
    decoder: Path,
    summary: dict[str, Any],
    details: dict[str, Any],
    metrics: dict[str, Any],
) -> Version:
    """Write a new version to the disk, completely or not at all; the caller holds the lock.

    Args:
        bundle: The devices' bundle.
        decoder: The adapted decoder's folder.
        summary: Entries for each map's provenance; number and time are added.
        details: Further content of ``adaptation.json``.
        metrics: For the bundle's manifest.
    """
    place = data_dir / FOLDER
    number = max([RELEASED, *numbered_folders(place)]) + 1
    summary = {"version": number, **summary, "created_us": now_us()}
    record = {**summary, **details}
    fresh = place / f".{number}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        shutil.copytree(decoder, fresh / "decoder")
        described = fresh / "decoder" / "decoder.json"
        content = {**json.loads(described.read_text()), "adaptation": summary}
        described.write_text(json.dumps(content, indent=2))
        copy_for_decoder(bundle, fresh / "bundle", content["sha256"], metrics)
        (fresh / RECORD).write_text(json.dumps(record, indent=2))
        sync_tree(fresh)
        os.replace(fresh, place / str(number))
        sync(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Version(number, record)
