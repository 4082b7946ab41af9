"""Manage the centre's key folder: its own identity and the allowed peers.

    KEYS/centre.public, centre.secret    the centre's own pair (CURVE, Z85)
    KEYS/NAME/                           what ``epic keys new NAME`` made, to be copied to NAME:
        NAME.public, NAME.secret         its pair
        NAME.mac                         a device's secret for serial and TCP (32 bytes, hex)
        centre.public                    whom it may talk to
    KEYS/allowed/NAME.public, NAME.mac   whom the centre lets in; a file removed is a right withdrawn
    KEYS/revoked/NAME-TIME.public        what was withdrawn, and when

NAME is ``device-3`` (of survey 1), ``survey-2-device-3``, or ``gateway-FREE`` for a gateway, which may speak
for every device that has a MAC secret in ``allowed``.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from central.errors import CentralError
from firmware_py.links.base import LinkError
from firmware_py.links.keys import check_private, device_name, read_key, read_secret
from firmware_py.protocol.frame_authenticator import SECRET_BYTES
from firmware_py.runtime.log import Log
from physics.files.atomic import sync

CENTRE = "centre"
_NAME = re.compile(
    r"(?:survey-(?P<survey>\d{1,5})-)?device-(?P<device>\d{1,5})|gateway-[a-z0-9][a-z0-9-]{0,40}"
)


class KeysError(CentralError, ValueError):
    """The key folder is incomplete, a name is invalid, or a key exists already."""


@dataclass(frozen=True)
class Identity:
    """Owner of a key. A gateway has neither survey nor device, and may speak for any device."""

    name: str
    survey: int | None = None
    device: int | None = None

    def may_speak_for(self, survey: int, device: int) -> bool:
        return self.device is None or (self.survey, self.device) == (survey, device)


def identify(name: str) -> Identity:
    """Parse ``name`` to an identity.

    Raises:
        KeysError: The name is invalid.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise KeysError(f"{name!r}: expected device-N, survey-S-device-N or gateway-NAME (lower case)")
    if match["device"] is None:
        return Identity(name)
    survey, device = int(match["survey"] or 1), int(match["device"])
    if max(survey, device) > 0xFFFF:
        raise KeysError(f"{name}: expected a survey and a device of 0 to 65535")
    # A device must not have two names; revoking one would leave the other.
    plain = device_name(survey, device)
    if name != plain:
        raise KeysError(f"{name}: write {plain}")
    return Identity(name, survey, device)


def new_centre(keys_dir: Path) -> Path:
    """Create the centre's key pair and return the public file.

    Raises:
        KeysError: A pair exists already.
    """
    keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _new_pair(keys_dir, CENTRE)
    return keys_dir / f"{CENTRE}.public"


def new_keys(keys_dir: Path, name: str) -> Path:
    """Create the keys of ``name`` in a folder to be copied there; create the centre's pair if missing.

    Raises:
        KeysError: ``name`` has keys already.
    """
    identity = identify(name)
    if not (keys_dir / f"{CENTRE}.public").exists():
        new_centre(keys_dir)
    folder = keys_dir / name
    # Write to a temporary folder and rename it, so that incomplete keys never look valid.
    aside = keys_dir / f".{name}.new"
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        raise KeysError(
            f"{folder}: already exists; to change keys, revoke {name}, remove it and make new ones"
        )
    aside.mkdir(mode=0o700)
    _new_pair(aside, name)
    if identity.device is not None:
        _write(aside / f"{name}.mac", secrets.token_bytes(SECRET_BYTES).hex().encode(), 0o600)
    shutil.copy(keys_dir / f"{CENTRE}.public", aside)
    aside.rename(folder)
    return folder


def allow(keys_dir: Path, name: str, source: Path | None = None) -> list[Path]:
    """Allow ``name`` with the keys in ``source`` (default: the keys made here), and with no earlier ones.

    Only the public key and the MAC secret are copied. Without a MAC secret in ``source``, an earlier one is removed.

    Returns:
        The files written.

    Raises:
        KeysError: A key is missing or invalid.
    """
    identify(name)
    source = source or keys_dir / name
    allowed = keys_dir / "allowed"
    allowed.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        public = read_key(source / f"{name}.public")
    except LinkError as error:
        raise KeysError(f"{error}; make it with: epic keys new {name}") from None
    holder = KeyRing(keys_dir).identity(public)
    if holder and holder.name != name:
        raise KeysError(f"{source}: this key is {holder.name}'s; each device needs its own")
    files = [allowed / f"{name}.public"]
    mac = source / f"{name}.mac"
    if mac.exists():
        _checked(read_secret, mac)
        files.append(allowed / mac.name)
        _write(files[-1], mac.read_bytes(), 0o600, replace=True)
    else:
        (allowed / mac.name).unlink(missing_ok=True)
    _write(files[0], public, 0o644, replace=True)
    return files


def revoke(keys_dir: Path, name: str) -> Path:
    """Revoke ``name``, also on open connections; return the new path of its public key."""
    identify(name)
    public = keys_dir / "allowed" / f"{name}.public"
    mac = public.with_suffix(".mac")
    if not public.exists():
        raise KeysError(f"{name}: is not allowed in {keys_dir}; see: epic keys list")
    mac.unlink(missing_ok=True)
    revoked = keys_dir / "revoked" / f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.public"
    revoked.parent.mkdir(mode=0o700, exist_ok=True)
    public.rename(revoked)
    # Sync the folder: after a power cut the key would otherwise be allowed again.
    for folder in (public.parent, revoked.parent):
        sync(folder)
    return revoked


def list_keys(keys_dir: Path) -> list[dict]:
    """List all keys in the folder by name: ``{"name", "state", "since", "public_key", "mac"}``, times in UTC.

    ``state`` is allowed, revoked, or new (created here, not allowed anywhere).

    Raises:
        KeysError: The folder is incomplete.
    """
    if not keys_dir.is_dir():
        raise KeysError(f"{keys_dir}: no such folder; expected the one `epic keys new` made")
    rows: list[dict] = []
    for state, paths in (
        ("allowed", keys_dir.glob("allowed/*.public")),
        ("revoked", keys_dir.glob("revoked/*.public")),
        ("new", (path for path in keys_dir.glob("[dsg]*/*.public") if path.parent.name == path.stem)),
    ):
        for path in paths:
            name = path.stem.rsplit("-", 1)[0] if state == "revoked" else path.stem
            if state == "new" and any(row["name"] == name for row in rows):
                continue
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(path.stat().st_ctime))
            try:
                public_key = read_key(path).decode()
            except LinkError as error:
                raise KeysError(str(error)) from None
            mac = path.with_suffix(".mac").exists()
            rows.append({"name": name, "state": state, "since": since, "public_key": public_key, "mac": mac})
    return sorted(rows, key=lambda row: (row["name"], row["since"]))


class KeyRing:
    """Allowed keys, read again from the disk after one second. Thread-safe; lookups never raise.

    An invalid key file admits nobody. If the system cannot read, for example without free file descriptors, the last
    state stays in force and is reported to ``log``.

    Raises:
        KeysError: The folder is incomplete at construction.
    """

    REFRESH_S = 1.0
    # Age at which a file's time of change is trusted: a second change in the same tick of the clock leaves it as it is.
    SETTLED_NS = 2_000_000_000

    def __init__(self, keys_dir: Path, log: Log | None = None) -> None:
        self._allowed = keys_dir / "allowed"
        # State of the folder that the rings were read from; None to read it again.
        self._state: tuple | None = None
        self._log = log or Log(None)
        self._complaint = ""
        self._read_at_s = float("-inf")
        self._identities: dict[bytes, Identity] = {}
        self._secrets: dict[tuple[int, int], bytes] = {}
        self._refresh()

    def identity(self, public_key: bytes) -> Identity | None:
        """Return the owner of ``public_key`` (40 Z85 characters), or None if the key is not allowed."""
        self._refresh()
        return self._identities.get(public_key)

    def devices(self) -> frozenset[tuple[int, int]]:
        """Every device, by survey and number, that is allowed."""
        self._refresh()
        return frozenset(
            (one.survey, one.device)
            for one in self._identities.values()
            if one.survey is not None and one.device is not None
        )

    def secret(self, survey: int, device: int) -> bytes | None:
        """Return a device's MAC secret, or None if it is not allowed or has none."""
        self._refresh()
        return self._secrets.get((survey, device))

    def _refresh(self) -> None:
        now_s = time.monotonic()
        if now_s - self._read_at_s < self.REFRESH_S:
            return
        first = self._read_at_s == float("-inf")
        self._read_at_s = now_s
        complaint = ""
        try:
            state = self._folder_state()
            if state is None or state != self._state:
                self._identities, self._secrets = self._read(first)
            self._state = state
        except OSError as error:
            self._state = None
            if first:
                raise KeysError(f"{self._allowed}: cannot be read ({error})") from None
            complaint = str(error)
            self._drop_withdrawn()
        if complaint and not self._complaint:
            self._log.write("keys_not_read", reason=complaint)
        self._complaint = complaint

    def _folder_state(self) -> tuple | None:
        """Return what changes with any change of a key; None while the latest change is too recent to tell.

        Reading the keys of 500 devices takes a tenth of a second, and records wait meanwhile.

        Raises:
            OSError: The system cannot read.
        """
        try:
            found = [("", os.stat(self._allowed)), ("..", os.stat(self._allowed.parent))]
            with os.scandir(self._allowed) as entries:
                found += [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            return None
        if max(state.st_ctime_ns for _, state in found) > time.time_ns() - self.SETTLED_NS:
            return None
        return tuple(
            (name, state.st_ino, state.st_mode, state.st_size, state.st_ctime_ns) for name, state in found
        )

    def _read(self, strict: bool) -> tuple[dict[bytes, Identity], dict[tuple[int, int], bytes]]:
        """Read the key rings from the disk.

        Raises:
            OSError: The system cannot read.
            KeysError: A file is no key; only with ``strict``.
        """
        identities: dict[bytes, Identity] = {}
        mac_secrets: dict[tuple[int, int], bytes] = {}
        # Not ``glob``: since Python 3.12 it returns nothing for an unreadable folder.
        try:
            names = sorted(os.listdir(self._allowed))
            if names:
                self._check_folders()
        except FileNotFoundError:
            names = []
        except PermissionError as error:
            if strict:
                raise KeysError(str(error)) from None
            raise
        for path in (self._allowed / name for name in names if name.endswith(".public")):
            try:
                identity = identify(path.stem)
                mac = path.with_suffix(".mac")
                for file in (path, mac):
                    if file.is_symlink():
                        # Reject links: whoever can write to the target could allow a key of their own.
                        raise KeysError(f"{file}: is a link; copy the file itself, with: epic keys allow")
                if path.stat().st_mode & 0o022:
                    raise KeysError(f"{path}: others may write it; run: chmod 644 {path}")
                identities[read_key(path)] = identity
                if identity.survey is not None and identity.device is not None and mac.exists():
                    mac_secrets[identity.survey, identity.device] = read_secret(mac)
            except (KeysError, LinkError) as error:
                cause = error.__context__
                if isinstance(cause, FileNotFoundError):
                    # Revoked a moment ago.
                    continue
                if strict:
                    raise KeysError(str(error)) from None
                if isinstance(cause, OSError) and not isinstance(cause, PermissionError):
                    raise
        return identities, mac_secrets

    def _check_folders(self) -> None:
        """Raise ``PermissionError`` if other users can write to ``allowed`` or to the folder that holds it."""
        for folder in (self._allowed.parent, self._allowed):
            if os.stat(folder).st_mode & 0o022:
                raise PermissionError(f"{folder}: others may write in it; run: chmod 700 {folder}")

    def _drop_withdrawn(self) -> None:
        """Drop keys whose files are gone. This needs no file descriptor, so revocation works without one."""
        gone = {one for one in self._identities.values() if _is_gone(self._allowed / f"{one.name}.public")}
        self._identities = {key: one for key, one in self._identities.items() if one not in gone}
        devices = {(one.survey, one.device) for one in gone}
        self._secrets = {who: secret for who, secret in self._secrets.items() if who not in devices}


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def read_centre(keys_dir: Path) -> tuple[bytes, bytes]:
    """Return the centre's (public, secret) keys.

    Raises:
        KeysError: The keys are missing, do not match, or are readable by others.
    """
    secret_path = keys_dir / f"{CENTRE}.secret"
    try:
        public, secret = read_key(keys_dir / f"{CENTRE}.public"), read_key(secret_path)
    except LinkError as error:
        raise KeysError(f"{error}; make the centre's keys with: epic keys new {CENTRE}") from None
    if zmq.curve_public(secret) != public:
        raise KeysError(f"{secret_path}: does not belong to {CENTRE}.public; restore the pair")
    _checked(check_private, secret_path)
    return public, secret


def _checked(check: Callable[[Path], object], path: Path) -> None:
    try:
        check(path)
    except LinkError as error:
        raise KeysError(str(error)) from None


def _new_pair(folder: Path, name: str) -> None:
    if (folder / f"{name}.secret").exists():
        raise KeysError(f"{folder / name}.secret: already exists; devices trust it, so it is not replaced")
    public, secret = zmq.curve_keypair()
    _write(folder / f"{name}.secret", secret, 0o600)
    _write(folder / f"{name}.public", public, 0o644)


def _write(path: Path, content: bytes, mode: int, replace: bool = False) -> None:
    """Write a file completely or not at all; other users can never read it, not even during the write."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content + (b"" if content.endswith(b"\n") else b"\n"))
        file.flush()
        os.fsync(file.fileno())
    if path.exists() and not replace:
        aside.unlink()
        raise KeysError(f"{path}: already exists")
    aside.rename(path)
    sync(path.parent)
