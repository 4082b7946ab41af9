"""Read the device's ``device.json``. JSON, as MicroPython has no TOML; names and units are ``node.toml``'s.

Every key and its default; a key without one must be there:

    {"device": 0, "survey": 1, "board": "openmv-rt1062",
     "bundle": "bundle", "secret": "device-0.mac", "insecure": false,
     "link": {"kind": "uart", "port": 1, "baud": 115200, "window": 8, "resend_ms": 2000},
     "source": {"kind": "replay", "path": "gathers.npy", "step": 0.001, "interval_ms": 0},
     "spool": {"kind": "file", "path": "", "records": 256, "stride": 512, "start": 0, "bytes": 0},
     "health": {"interval_s": 60},
     "update": {"key": "", "trial_s": 600}}

``link`` kinds are uart, usb (a second USB serial port) and tcp. ``port`` is a number, or the name that the board's
``machine.UART`` takes ("LP1"); ``tx`` and ``rx`` are its pins where it has none of its own. tcp has the gateway's
``"endpoint": "HOST:PORT"``, and ``ssid`` and ``password`` of the Wi-Fi, instead; without ``ssid`` the board has a
network already. ``source`` kinds are replay, and module, with ``name`` in the place of ``path``,
``step`` and ``interval_ms``: see ``source.py``. ``spool`` kinds are file, littlefs, flash and card, see ``store.py``;
without ``path``, file is spool.bin and littlefs the folder spool. ``records`` holds for a new spool; a file or folder
that is there keeps its size until it is removed. ``stride`` is the distance of a file's slots in bytes. Without
``key``, the file of a public signing key, no updates are taken.
"""

import binascii
import json

from firmware_py.micropython.errors import SetupError

SECRET_BYTES = 32
_NEEDED = "needed"
_SECTIONS = {
    "link": {
        "kind": _NEEDED,
        "port": 1,
        "tx": "",
        "rx": "",
        "baud": 115_200,
        "endpoint": "",
        "ssid": "",
        "password": "",
        "window": 8,
        "resend_ms": 2000,
    },
    "source": {"kind": _NEEDED, "path": "", "step": 0.0, "interval_ms": 0, "name": ""},
    "spool": {"kind": "file", "path": "", "records": 256, "stride": 512, "start": 0, "bytes": 0},
    "health": {"interval_s": 60},
    "update": {"key": "", "trial_s": 600},
}
_TOP = {"device": _NEEDED, "survey": 1, "board": "", "bundle": "bundle", "secret": "", "insecure": False}
_KINDS = {
    "link": ("uart", "usb", "tcp"),
    "source": ("replay", "module"),
    "spool": ("file", "littlefs", "flash", "card"),
}
_RANGES = (
    ("", "device", 0, 65535),
    ("", "survey", 0, 65535),
    ("link", "port", 0, 15),
    ("link", "baud", 1200, 4_000_000),
    ("link", "window", 1, 255),
    ("link", "resend_ms", 50, 30_000),
    ("source", "interval_ms", 0, 86_400_000),
    ("spool", "records", 2, 65535),
    ("spool", "stride", 512, 65536),
    ("spool", "start", 0, 0x7FFF_FFFF),
    ("spool", "bytes", 0, 0x7FFF_FFFF),
    ("health", "interval_s", 1, 86_400),
    ("update", "trial_s", 10, 86_400),
)


class ConfigError(SetupError):
    """``device.json``, or a file it names, is missing, damaged or invalid."""


def load_config(path):
    """Return the complete configuration as a dict.

    Raises:
        ConfigError: The file is missing or invalid.
    """
    try:
        with open(path) as file:
            given = json.load(file)
    except OSError:
        raise ConfigError("%s: not found; copy the board's configuration" % path) from None
    except ValueError:
        raise ConfigError("%s: not JSON" % path) from None
    config = _section(path, "", _TOP, given, _SECTIONS)
    for name, known in _SECTIONS.items():
        config[name] = _section(path, name, known, given.get(name, {}), ())
    for name, kinds in _KINDS.items():
        if config[name]["kind"] not in kinds:
            raise ConfigError(
                "%s: expected %s kind of %s, got %r" % (path, name, kinds, config[name]["kind"])
            )
    for section, name, low, high in _RANGES:
        value = (config[section] if section else config)[name]
        if type(value) is str:
            # The name of a port.
            continue
        if not low <= value <= high:
            raise ConfigError(
                "%s: %s %s: expected %d to %d, got %d" % (path, section, name, low, high, value)
            )
    if config["link"]["kind"] == "tcp":
        host_and_port(config["link"])
    spool = config["spool"]
    if spool["kind"] == "flash" and bool(spool["path"]) == bool(spool["bytes"]):
        raise ConfigError(
            "%s: spool of kind flash: expected either the partition's label as path, or start and bytes"
            % path
        )
    if bool(config["secret"]) == config["insecure"]:
        raise ConfigError('%s: expected a secret, or "insecure": true and none' % path)
    return config


def _section(path, name, known, given, sections):
    if not isinstance(given, dict):
        raise ConfigError("%s: expected {...} as %s, got %r" % (path, name or "a whole", given))
    for key in given:
        if key not in known and key not in sections:
            raise ConfigError("%s: unknown %s %s; known are %s" % (path, name, key, ", ".join(sorted(known))))
    result = {}
    for key, default in known.items():
        value = given.get(key, default)
        if value is _NEEDED:
            raise ConfigError("%s: %s %s is missing" % (path, name, key))
        # A device number has no default to take its type from; a step may be written as an integer.
        kind = str if key == "kind" else int if default is _NEEDED else type(default)
        also = {"step": int, "port": str}.get(key)
        if type(value) is not kind and type(value) is not also:
            # Keep secrets out of every log.
            shown = "another type" if key == "password" else repr(value)
            raise ConfigError("%s: %s %s: expected %s, got %s" % (path, name, key, kind.__name__, shown))
        result[key] = value
    return result


def host_and_port(link):
    """The gateway's address in a section ``link`` of kind tcp. Raises ``ConfigError``."""
    host, _, port = link["endpoint"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("link endpoint: expected HOST:PORT of a gateway, got %r" % link["endpoint"])
    return host, int(port)


def read_secret(path):
    """A MAC secret or a public signing key of 32 bytes from its file, hex, as `epic keys new` made it.

    Raises:
        ConfigError: The file is missing or is none.
    """
    try:
        with open(path) as file:
            secret = binascii.unhexlify(file.read().strip())
    except OSError:
        raise ConfigError("%s: not found; expected a MAC secret, made with: epic keys new" % path) from None
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise ConfigError("%s: expected %d bytes in hex, made with: epic keys new" % (path, SECRET_BYTES))
    return secret
