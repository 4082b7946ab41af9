"""Create and validate ``node.toml`` and the keys of one device."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from boards.install.linux.layout import PREFIX, STATE, Layout
from boards.install.linux.shell import InstallError
from firmware_py.links.base import LinkError
from firmware_py.links.keys import device_name, read_curve_keys, read_secret
from firmware_py.runtime.config import ConfigError, load_config
from firmware_py.updates.archive import ArchiveError, read_verify_key

CENTRE = "centre"


@dataclass(frozen=True)
class Settings:
    """Settings of one device. Paths of recordings are paths on the board.

    ``endpoint`` selects the link: tcp://host:port is the centre (ZeroMQ), host:port a gateway (TCP), /dev/… a serial
    port; on a microcontroller uart:N or usb:N. ``keys`` is the centre's key folder, or this device's folder in it, made
    by `epic keys new`. Without ``replay`` the device watches ``incoming``.
    """

    device: int
    endpoint: str
    keys: Path
    survey: int = 1
    baud: int = 115_200
    incoming: str = f"{STATE}/incoming"
    replay: tuple[str, ...] = ()
    signing_key: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(tcp://)?[^/\s]+:\d{1,5}|/\S+|uart:\w+(:\w+:\w+)?", self.endpoint):
            raise InstallError(
                "endpoint: expected tcp://HOST:PORT, HOST:PORT or /dev/NAME, of a microcontroller uart:N or "
                f"usb:N, got {self.endpoint!r}"
            )
        port = self.endpoint.rpartition(":")[2]
        if self.kind != "serial" and port.isdecimal() and int(port) > 0xFFFF:
            raise InstallError(f"endpoint: expected a port of at most {0xFFFF}, got {self.endpoint!r}")
        # The systemd unit names the folder; its syntax has lines, quotes and escapes.
        if re.search(r"""[\x00-\x1f\x7f"'\\]""", self.incoming):
            raise InstallError(
                "incoming: expected a folder whose name has no quotation marks, backslashes or control characters, "
                f"got {self.incoming!r}; rename it"
            )

    @property
    def kind(self) -> str:
        if self.endpoint.startswith("tcp://"):
            return "zmq"
        return "serial" if self.endpoint.startswith("/") else "tcp"

    @property
    def name(self) -> str:
        """As `epic keys` names the device."""
        return device_name(self.survey, self.device)


@dataclass(frozen=True)
class KeyFile:
    path: str
    content: bytes
    private: bool


def key_files(settings: Settings) -> list[KeyFile]:
    """Return the key files that the device's link needs, under ``PREFIX``/keys.

    Raises:
        InstallError: A key is missing.
    """
    folder = settings.keys / settings.name
    folder = folder if folder.is_dir() else settings.keys
    public, secret, mac = (folder / f"{settings.name}{end}" for end in (".public", ".secret", ".mac"))
    if not public.exists():
        raise InstallError(
            f"{settings.keys}: no keys of {settings.name} there; at the centre: epic keys new {settings.name}, "
            f"epic keys allow {settings.name}"
        )
    files = [public, secret, folder / f"{CENTRE}.public"] if settings.kind == "zmq" else [mac]
    try:
        if settings.kind == "zmq":
            read_curve_keys(files[2], public, secret)
        else:
            read_secret(mac)
        if settings.signing_key:
            read_verify_key(settings.signing_key)
    except (LinkError, ArchiveError) as error:
        raise InstallError(str(error)) from None
    found = [KeyFile(f"{PREFIX}/keys/{p.name}", p.read_bytes(), p in (secret, mac)) for p in files]
    if settings.signing_key:
        found.append(KeyFile(f"{PREFIX}/keys/signing.public", settings.signing_key.read_bytes(), False))
    return found


def node_toml(settings: Settings, board: str, layout: Layout, accelerator: str = "") -> str:
    """The device's configuration, valid by the device's own check. Raises ``InstallError``."""
    state = layout.seen(STATE)
    incoming = settings.incoming
    if incoming.startswith(f"{STATE}/"):
        incoming = layout.seen(incoming)
    lines = [
        "# Written by `epic board install`; the next one replaces it.",
        "[node]",
        f"device = {settings.device}",
        f"survey = {settings.survey}",
        'bundle = "bundle"',
        f"state_dir = {_text(state)}",
        *([f"accelerator = {_text(accelerator)}"] if accelerator else []),
        "[link]",
        f"kind = {_text(settings.kind)}",
        f"endpoint = {_text(settings.endpoint)}",
    ]
    if settings.kind == "zmq":
        lines += [
            f'server_key = "keys/{CENTRE}.public"',
            f'public_key = "keys/{settings.name}.public"',
            f'secret_key = "keys/{settings.name}.secret"',
        ]
    else:
        lines.append(f'secret = "keys/{settings.name}.mac"')
    if settings.kind == "serial":
        lines.append(f"baud = {settings.baud}")
    lines.append("[source]")
    if settings.replay:
        lines += ['kind = "files"', f"paths = [{', '.join(_text(path) for path in settings.replay)}]"]
    else:
        lines += ['kind = "folder"', f"path = {_text(incoming)}"]
    if settings.signing_key:
        lines += ["[update]", 'key = "keys/signing.public"', f"board = {_text(board)}"]
    text = "\n".join(lines) + "\n"
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "node.toml"
        path.write_text(text, encoding="utf-8")
        try:
            load_config(path)
        except ConfigError as error:
            raise InstallError(str(error).removeprefix(f"{path}: ")) from None
    return text


def _text(value: str) -> str:
    """Return a TOML string; JSON strings are valid TOML except for surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)
