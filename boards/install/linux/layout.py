"""Define paths on a Linux board, and the system's configuration files."""

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
# Memory limit: twice the 120 MB that the process should need at most.
MEMORY_MAX = "240M"
# systemd device names of an accelerator, and the group of its runtime's udev rules. A USB accelerator re-appears as
# another device after its first inference.
ACCELERATORS = {"edgetpu": ("char-usb_device", "plugdev")}
# Major numbers of serial ports by name prefix (Linux, Documentation/admin-guide/devices.txt).
SERIAL_MAJORS = {"ttyUSB": 188, "ttyACM": 166, "ttyAMA": 204, "ttyS": 4}


@dataclass(frozen=True)
class Layout:
    """Paths as the device sees them. ``seen_from`` is empty, or the plain folder that stands for the root."""

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
        # /opt is read-only for the service; compiled modules go to its cache, or every start would compile them again.
        return {"PYTHONPATH": self.seen(PREFIX), "PYTHONPYCACHEPREFIX": self.seen(CACHE)}

    @property
    def config(self) -> str:
        return self.seen(f"{PREFIX}/node.toml")

    def run_argv(self, command: str, *options: str) -> list[str]:
        """Return the command that runs the device outside its service; ``command`` is run or check."""
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", *environment, *self.command, command, "--config", self.config, *options]


UNIT = f"{SYSTEM}/{SERVICE}.service"
WANTED = f"{SYSTEM}/multi-user.target.wants/{SERVICE}.service"
SYSUSERS = "/etc/sysusers.d/epic.conf"
TMPFILES = "/etc/tmpfiles.d/epic.conf"
INSTALLED = f"{PREFIX}/installed.json"
STAGING = f"{PREFIX}/staging"
# Marker file; exists from the first change of an installation until its last step is done.
UNFINISHED = f"{PREFIX}/unfinished"


# Large: two thirds are the text of the unit, which stays in the order in which systemd reads it.
def unit(
    layout: Layout,
    device: int,
    serial_port: str,
    incoming: str,
    replay: tuple[str, ...],
    accelerator: str = "",
) -> str:
    """Return the systemd unit.

    It may open the device files of ``serial_port`` and ``accelerator``, if any. Recordings come from the folder
    ``incoming``, out of which it moves them, or from the files ``replay``.
    """
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
    # Recordings are mounted at their own paths, also in places otherwise hidden from the service.
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
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def _serial_devices(port: str) -> list[str]:
    """Return the device rule for ``port``: all ports of its class; the group dialout limits access.

    systemd resolves a path once, when the unit starts. An adapter that is plugged in later would stay inaccessible. A
    rule by major number, not by name, also covers drivers that are not loaded yet.
    """
    name = port.rpartition("/")[2]
    own = [number for kind, number in SERIAL_MAJORS.items() if re.fullmatch(kind + r"\d+", name)]
    if own:
        return [f"char-{own[0]}"]
    # A link may lead to any port, and some ports have no major number.
    return [*(f"char-{number}" for number in SERIAL_MAJORS.values()), port]


def _quoted(path: str) -> str:
    """Quote a path for a systemd list, which splits at white space and expands per cent signs."""
    path = path.replace("%", "%%")
    return f'"{path}"' if re.search(r"\s", path) else path


def _under(path: str, *folders: str) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


def sysusers(layout: Layout, accelerator: str = "") -> str:
    """Return the sysusers entry of the device's user, in the group of its ``accelerator``."""
    user = f'u {USER} - "EPIC device" {layout.seen(STATE)}\n'
    return user + (f"m {USER} {ACCELERATORS[accelerator][1]}\n" if accelerator else "")


def tmpfiles(layout: Layout) -> str:
    """Return folders and owners (tmpfiles); recorders need the group epic to write into incoming/."""
    prefix, state, cache = (layout.seen(path) for path in (PREFIX, STATE, CACHE))
    return f"""\
d {state} 0755 {USER} {USER}
d {state}/incoming 2770 {USER} {USER}
d {cache} 0755 {USER} {USER}
z {prefix}/keys 0750 root {USER}
z {prefix}/keys/*.secret 0600 {USER} {USER}
z {prefix}/keys/*.mac 0600 {USER} {USER}
"""
