"""Read ``node.toml``, a device's configuration. Plain dataclasses, since devices carry no validation library."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firmware_py.errors import FirmwareError
from firmware_py.inference.encoder import DELEGATES
from firmware_py.links.registry import LINKS, LinkSection
from firmware_py.protocol.health_messages import MAX_INTERVAL_S
from firmware_py.protocol.rate import BITS
from firmware_py.runtime.toml_keys import find_unknown


class ConfigError(FirmwareError, ValueError):
    """``node.toml`` is missing, is not TOML, or has an invalid value."""


@dataclass(frozen=True)
class NodeSection:
    """Identity of the device.

    ``receivers`` is [first, last] or a list; the default is the bundle's split. ``bits`` is the size of each sent
    latent value, 8 or 4 (``rate.py``). ``accelerator`` is "edgetpu", or empty for the processor.
    """

    device: int
    bundle: Path
    survey: int = 1
    state_dir: Path = Path("state")
    receivers: tuple[int, ...] = ()
    spool_records: int = 10_000
    bits: int = 8
    accelerator: str = ""


@dataclass(frozen=True)
class SourceSection:
    """Source of recordings: ``files`` (replayed every ``interval_s``) or a watched ``folder``.

    While the folder's disk has less than ``keep_free_mib`` free, the oldest sent recordings are deleted.
    """

    kind: str
    paths: tuple[Path, ...] = ()
    interval_s: float = 0.0
    limit: int = 0
    path: Path = Path("incoming")
    poll_s: float = 0.5
    keep_free_mib: int = 256


@dataclass(frozen=True)
class RunSection:
    """``exit_when_drained``: exit once the source is exhausted and all records are acknowledged."""

    exit_when_drained: bool = False
    log: Path | None = None


@dataclass(frozen=True)
class HealthSection:
    """Interval of health reports; a device that misses three of them counts as late."""

    interval_s: int = 60


@dataclass(frozen=True)
class UpdateSection:
    """Updates over the link.

    ``key`` is the file of the public signing key. ``board`` is this device's board, for updates limited to some boards.
    A new bundle that the centre has not answered within ``trial_s`` is rolled back. The device first starts from [node]
    bundle; later bundles are in state_dir/slots.
    """

    key: Path
    board: str = ""
    trial_s: float = 600.0


@dataclass(frozen=True)
class NodeConfig:
    node: NodeSection
    link: LinkSection
    source: SourceSection
    run: RunSection = field(default_factory=RunSection)
    update: UpdateSection | None = None
    health: HealthSection = field(default_factory=HealthSection)


def load_config(path: Path) -> NodeConfig:
    """Read ``node.toml``; its relative paths are relative to its folder.

    Raises:
        ConfigError: The file is missing or invalid.
    """
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not text in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give --config a node.toml") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    known = {name: [entry.name for entry in dataclasses.fields(kind)] for name, kind in _SECTIONS.items()}
    if unknown := find_unknown(text, content, known):
        raise ConfigError(f"{path}: {unknown}")
    sections = {}
    for entry in dataclasses.fields(NodeConfig):
        if entry.name not in content and entry.name == "update":
            continue
        if entry.name not in content and entry.name not in ("run", "health"):
            raise ConfigError(f"{path}: section [{entry.name}] is missing")
        kind = _SECTIONS[entry.name]
        sections[entry.name] = _section(path, entry.name, kind, content.pop(entry.name, {}))
    config = NodeConfig(**sections)
    _check(path, config)
    return config


_SECTIONS: dict[str, Any] = {
    "node": NodeSection,
    "link": LinkSection,
    "source": SourceSection,
    "run": RunSection,
    "health": HealthSection,
    "update": UpdateSection,
}


def _section(path: Path, name: str, kind: Any, given: Any) -> Any:
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected a section [{name}], got {given!r}")
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    for key, entry in known.items():
        if key not in given and entry.default is dataclasses.MISSING:
            raise ConfigError(f"{path}: [{name}] {key} is missing")
    values = {key: _value(path, name, key, str(known[key].type), value) for key, value in given.items()}
    for key, entry in known.items():
        if key not in given and isinstance(entry.default, Path):
            values[key] = path.resolve().parent / entry.default
    return kind(**values)


def _value(path: Path, section: str, key: str, kind: str, value: Any) -> Any:
    """Convert ``value`` to the field's declared type, or raise a ``ConfigError`` that names the key."""
    base = path.resolve().parent
    if (
        "Path" in kind
        and "tuple" in kind
        and isinstance(value, list)
        and all(isinstance(v, str) for v in value)
    ):
        return tuple(base / v for v in value)
    if kind.startswith("Path") and isinstance(value, str):
        return base / value
    if kind == "tuple[int, ...]" and isinstance(value, list) and all(type(v) is int for v in value):
        return tuple(value)
    if kind == "float" and type(value) in (int, float):
        return float(value)
    if kind in ("int", "str", "bool") and type(value).__name__ == kind:
        return value
    raise ConfigError(f"{path}: [{section}] {key}: expected {kind.replace('Path', 'path')}, got {value!r}")


def _check(path: Path, config: NodeConfig) -> None:
    for section, key, value, good, expected in (
        ("node", "device", config.node.device, 0 <= config.node.device < 1 << 16, "0 to 65535"),
        ("node", "survey", config.node.survey, 0 <= config.node.survey < 1 << 16, "0 to 65535"),
        ("node", "spool_records", config.node.spool_records, config.node.spool_records >= 1, "at least 1"),
        ("node", "bits", config.node.bits, config.node.bits in BITS, " or ".join(map(str, BITS))),
        (
            "node",
            "accelerator",
            config.node.accelerator,
            config.node.accelerator in ("", *DELEGATES),
            f"{' or '.join(DELEGATES)}, or none",
        ),
        ("link", "kind", config.link.kind, config.link.kind in LINKS, " or ".join(LINKS)),
        (
            "link",
            "endpoint",
            config.link.endpoint,
            _has_port(config.link.endpoint),
            "a port of at most 65535",
        ),
        ("link", "baud", config.link.baud, config.link.baud > 0, "more than 0"),
        ("link", "resend_s", config.link.resend_s, config.link.resend_s > 0, "more than 0"),
        ("link", "window", config.link.window, 1 <= config.link.window <= 1000, "1 to 1000"),
        ("source", "interval_s", config.source.interval_s, config.source.interval_s >= 0, "0 or more"),
        ("source", "limit", config.source.limit, config.source.limit >= 0, "0 (no limit) or more"),
        ("source", "poll_s", config.source.poll_s, config.source.poll_s >= 0, "0 or more"),
        (
            "source",
            "keep_free_mib",
            config.source.keep_free_mib,
            config.source.keep_free_mib >= 0,
            "0 (remove nothing) or more",
        ),
        (
            "health",
            "interval_s",
            config.health.interval_s,
            1 <= config.health.interval_s <= MAX_INTERVAL_S,
            f"1 to {MAX_INTERVAL_S}",
        ),
        (
            "source",
            "kind",
            config.source.kind,
            config.source.kind in ("files", "folder"),
            '"files" or "folder"',
        ),
    ):
        if not good:
            raise ConfigError(f"{path}: [{section}] {key}: expected {expected}, got {value!r}")
    if config.update and not 0 < config.update.trial_s < float("inf"):
        raise ConfigError(
            f"{path}: [update] trial_s: expected seconds, more than 0, got {config.update.trial_s!r}"
        )
    _check_security(path, config.link)
    if config.source.kind == "files" and not config.source.paths:
        raise ConfigError(f"{path}: [source] paths: expected at least one .npy file to replay")


def _check_security(path: Path, link: LinkSection) -> None:
    curve = {
        "server_key": link.server_key,
        "public_key": link.public_key,
        "secret_key": link.secret_key,
    }
    needed, others = (
        (curve, {"secret": link.secret}) if link.kind == "zmq" else ({"secret": link.secret}, curve)
    )
    if misplaced := [name for name, value in others.items() if value]:
        raise ConfigError(
            f"{path}: [link] {misplaced[0]}: not for kind {link.kind!r}; it takes {', '.join(needed)}"
        )
    given = [name for name, value in needed.items() if value]
    if given and link.insecure:
        raise ConfigError(f"{path}: [link] {given[0]} and insecure exclude each other; remove one")
    if given and len(given) < len(needed):
        raise ConfigError(f"{path}: [link] expected {', '.join(needed)}, got only {', '.join(given)}")
    if not given and not link.insecure:
        raise ConfigError(
            f"{path}: [link] {', '.join(needed)}: missing; copy what `epic keys new device-N` made at the "
            "centre, or, for a trial on this machine alone, say insecure = true"
        )
    if link.insecure and link.kind != "serial" and not is_loopback(link.endpoint):
        raise ConfigError(
            f"{path}: [link] insecure: expected an endpoint on this machine (127.0.0.1), got {link.endpoint}; for "
            "another machine, copy the keys that `epic keys new device-N` made at the centre"
        )


def _has_port(endpoint: str) -> bool:
    match = re.search(r":(\d+)$", endpoint)
    return not match or int(match[1]) <= 0xFFFF


def is_loopback(endpoint: str) -> bool:
    """Return True if ``endpoint`` (tcp://host:port, host:port or ipc://path) is local to this machine."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
