"""Where things land on a Linux board, and the texts that the system reads there."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "/opt/epic"
STATE = "/var/lib/epic"
CACHE = "/var/cache/epic"
SERVICE = "epic-device"
USER = "epic"
SYSTEM = "/etc/systemd/system"
WATCHDOG_S = 60
# The process is to take 120 MB at most; what takes twice that has gone wrong.
MEMORY_MAX = "240M"
# What systemd calls an accelerator's device files, and the group to which its runtime's udev rules give them. A USB
# one comes back as another device after its first inference.
ACCELERATORS = {"edgetpu": ("char-usb_device", "plugdev")}
# Major numbers of serial ports, by what the port's name begins with (Linux, Documentation/admin-guide/devices.txt).
SERIAL_MAJORS = {"ttyUSB": 188, "ttyACM": 166, "ttyAMA": 204, "ttyS": 4}


@dataclass(frozen=True)
class Layout:
    """Paths as the device sees them: ``seen_from`` is empty, or the plain folder that stands for the root."""

    seen_from: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen_from", self.seen_from.rstrip("/"))

    def seen(self, path: str) -> str:
        return self.seen_from + path

    @property
    def command(self) -> list[str]:
        """``python -m firmware_py`` as the service runs it, without its sub-command."""
        return [self.seen(f"{PREFIX}/venv/bin/python"), "-m", "firmware_py"]

    @property
    def environment(self) -> dict[str, str]:
        # /opt is read-only to the service: compiled modules go to its cache, or each start would compile anew.
        return {"PYTHONPATH": self.seen(PREFIX), "PYTHONPYCACHEPREFIX": self.seen(CACHE)}

    @property
    def config(self) -> str:
        return self.seen(f"{PREFIX}/node.toml")

    def run_argv(self, command: str, *options: str) -> list[str]:
        """The device outside its service: ``command`` is run or check."""
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", *environment, *self.command, command, "--config", self.config, *options]


UNIT = f"{SYSTEM}/{SERVICE}.service"
WANTED = f"{SYSTEM}/multi-user.target.wants/{SERVICE}.service"
SYSUSERS = "/etc/sysusers.d/epic.conf"
TMPFILES = "/etc/tmpfiles.d/epic.conf"
INSTALLED = f"{PREFIX}/installed.json"
STAGING = f"{PREFIX}/staging"
# There from the first change of an installation until its last step is done.
UNFINISHED = f"{PREFIX}/unfinished"


def unit(
    layout: Layout,
    device: int,
    serial_port: str,
    incoming: str,
    replay: tuple[str, ...],
    accelerator: str = "",
) -> str:
    """The systemd unit. ``serial_port`` and those of the ``accelerator`` are the device files that it may open, if
    any; recordings come from the folder ``incoming``, out of which it moves them, or from the files ``replay``."""
    environment = "\n".join(f"Environment={name}={value}" for name, value in layout.environment.items())
    command = " ".join([*layout.command, "run", "--config", layout.config])
    opened = _serial_devices(serial_port) if serial_port else []
    if accelerator:
        opened.append(ACCELERATORS[accelerator][0])
    lines = ["DevicePolicy=closed", *(f"DeviceAllow={name} rw" for name in opened)]
    if serial_port:
        lines.append("SupplementaryGroups=dialout")
    devices = "\n".join(lines) if opened else "PrivateDevices=yes"
    families = "AF_UNIX" if serial_port else "AF_INET AF_INET6 AF_NETLINK AF_UNIX"
    paths = "" if replay or _under(incoming, STATE) else f"\nReadWritePaths={_quoted(incoming)}"
    # Recordings are seen where they are, also in places that a service is best not to see.
    read = replay or (incoming,)
    home = "read-only" if any(_under(path, "/home", "/root", "/run/user") for path in read) else "yes"
    temporary = "no" if any(_under(path, "/tmp", "/var/tmp") for path in read) else "yes"
    return f"""\
# Written by `epic board install`; the next one replaces it. Changes: systemctl edit {SERVICE}
[Unit]
Description=EPIC device {device}
Wants=network-online.target
After=network-online.target time-sync.target
# It has to come back however often it fails: nobody is there to start it.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
WorkingDirectory={layout.seen(PREFIX)}
{environment}
Restart=on-failure
RestartSec=10
TimeoutStartSec=180
WatchdogSec={WATCHDOG_S}
User={USER}
Group={USER}
StateDirectory=epic
CacheDirectory=epic
MemoryMax={MEMORY_MAX}
UMask=0027

ProtectSystem=strict{paths}
ProtectHome={home}
PrivateTmp={temporary}
{devices}
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
LockPersonality=yes
RestrictAddressFamilies={families}
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged

[Install]
WantedBy=multi-user.target
"""


def _serial_devices(port: str) -> list[str]:
    """What the unit allows for ``port``: all of its class, and those that its group, dialout, lets the user open.

    systemd looks a path up once, when the unit starts: an adapter that is plugged in later, or again, would stay
    closed. Of a number, not a name, it takes what the kernel has no driver loaded for yet.
    """
    name = port.rpartition("/")[2]
    own = [number for kind, number in SERIAL_MAJORS.items() if re.fullmatch(kind + r"\d+", name)]
    if own:
        return [f"char-{own[0]}"]
    # A link to a port, which may lead to any; or a kind of port that has no number of its own.
    return [*(f"char-{number}" for number in SERIAL_MAJORS.values()), port]


def _quoted(path: str) -> str:
    """A path in a list of systemd's, which separates at white space and replaces what follows a per cent sign."""
    path = path.replace("%", "%%")
    return f'"{path}"' if re.search(r"\s", path) else path


def _under(path: str, *folders: str) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


def sysusers(layout: Layout, accelerator: str = "") -> str:
    """The device's own user, in the group of its ``accelerator``; systemd makes it, at the latest when the board
    starts."""
    user = f'u {USER} - "EPIC device" {layout.seen(STATE)}\n'
    return user + (f"m {USER} {ACCELERATORS[accelerator][1]}\n" if accelerator else "")


def tmpfiles(layout: Layout) -> str:
    """Folders and owners. Whoever records needs the group epic to put files into incoming/."""
    prefix, state, cache = (layout.seen(path) for path in (PREFIX, STATE, CACHE))
    return f"""\
d {state} 0755 {USER} {USER}
d {state}/incoming 2770 {USER} {USER}
d {cache} 0755 {USER} {USER}
z {prefix}/keys 0750 root {USER}
z {prefix}/keys/*.secret 0600 {USER} {USER}
z {prefix}/keys/*.mac 0600 {USER} {USER}
"""
