"""The systemd unit: one that systemd understands, that keeps the device in, and lets it do its work."""

import re
import shutil
import subprocess

import pytest

from boards.install.linux.layout import STATE, Layout, unit
from boards.install.linux.shell import InstallError
from boards.install.settings import Settings

KINDS = {
    "network": ("", f"{STATE}/incoming", ()),
    "serial": ("/dev/ttyAMA0", f"{STATE}/incoming", ()),
    "a serial line by its link": ("/dev/serial/by-id/usb-bridge-if00", f"{STATE}/incoming", ()),
    "a folder elsewhere": ("", "/srv/shots", ()),
    "a folder in a home": ("", "/home/pi/shots", ()),
    "a folder of any name": ("", "/media/USB DISK/50% done", ()),
    "a folder of a short name": ("", "/media/50%done", ()),
    "a replay": ("", f"{STATE}/incoming", ("/tmp/gathers.npy",)),
    "an accelerator": ("", f"{STATE}/incoming", (), "edgetpu"),
    "an accelerator on a serial line": ("/dev/ttyAMA0", f"{STATE}/incoming", (), "edgetpu"),
}


def settings(kind: str) -> dict[str, str]:
    lines = unit(Layout(), 3, *KINDS[kind]).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_systemd_understands_it_and_finds_it_closed(kind, tmp_path):
    path = tmp_path / "epic-device.service"
    text = unit(Layout(), 3, *KINDS[kind])
    path.write_text(re.sub("ExecStart=.*", "ExecStart=/bin/true", text))
    verify = ["systemd-analyze", "verify", "--man=no", str(path)]
    found = subprocess.run(verify, capture_output=True, text=True)
    assert [line for line in found.stderr.splitlines() if "epic-device.service" in line] == []
    # Exposure times ten; a service without any of this has 96.
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", str(path)]
    rated = subprocess.run(rate, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout.splitlines()[-1]


def test_it_watches_limits_and_restarts_the_device_under_a_user_of_its_own():
    found = settings("network")
    assert found["Type"] == "notify" and int(found["WatchdogSec"]) >= 10
    assert found["Restart"] == "on-failure" and found["StartLimitIntervalSec"] == "0"
    assert found["User"] == found["Group"] == "epic"
    assert found["MemoryMax"] == "240M"
    assert found["ProtectSystem"] == "strict" and found["StateDirectory"] == found["CacheDirectory"] == "epic"
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} <= set(found["RestrictAddressFamilies"].split())


def test_a_system_call_that_it_must_not_make_is_refused_and_does_not_end_the_device():
    found = settings("network")
    assert found["SystemCallFilter"] == "~@privileged" and found["SystemCallErrorNumber"] == "EPERM"


def test_a_serial_device_gets_its_kind_of_port_and_the_group_that_may_use_it_and_no_network():
    found = settings("serial")
    assert found["DeviceAllow"] == "char-204 rw" and found["DevicePolicy"] == "closed"
    assert found["SupplementaryGroups"] == "dialout" and "PrivateDevices" not in found
    assert found["RestrictAddressFamilies"] == "AF_UNIX"


@pytest.mark.parametrize(
    ("port", "allowed"),
    [
        ("/dev/ttyUSB0", ["char-188"]),
        ("/dev/ttyACM3", ["char-166"]),
        ("/dev/ttyS0", ["char-4"]),
        ("/dev/serial0", ["char-188", "char-166", "char-204", "char-4", "/dev/serial0"]),
        ("/dev/ttySC0", ["char-188", "char-166", "char-204", "char-4", "/dev/ttySC0"]),
    ],
)
def test_a_port_that_is_plugged_in_after_the_start_is_allowed_all_the_same(port, allowed):
    """systemd looks up a path once, when the unit starts; a major number needs no file to be there."""
    text = unit(Layout(), 3, port, f"{STATE}/incoming", ())
    assert re.findall("^DeviceAllow=(.*) rw$", text, re.M) == allowed


def test_an_accelerator_and_a_port_are_the_only_device_files():
    text = unit(Layout(), 3, *KINDS["an accelerator on a serial line"])
    assert re.findall("^DeviceAllow=(.*)$", text, re.M) == ["char-204 rw", "char-usb_device rw"]
    alone = settings("an accelerator")
    assert alone["DevicePolicy"] == "closed" and alone["DeviceAllow"] == "char-usb_device rw"
    assert "PrivateDevices" not in alone and "AF_INET" in alone["RestrictAddressFamilies"]


@pytest.mark.parametrize(
    ("kind", "writable", "home", "temporary"),
    [
        ("network", None, "yes", "yes"),
        ("a folder elsewhere", "/srv/shots", "yes", "yes"),
        ("a folder in a home", "/home/pi/shots", "read-only", "yes"),
        ("a folder of any name", '"/media/USB DISK/50%% done"', "yes", "yes"),
        ("a folder of a short name", "/media/50%%done", "yes", "yes"),
        ("a replay", None, "yes", "no"),
    ],
)
def test_recordings_are_within_reach(kind, writable, home, temporary):
    found = settings(kind)
    assert (found.get("ReadWritePaths"), found["ProtectHome"], found["PrivateTmp"]) == (
        writable,
        home,
        temporary,
    )


@pytest.mark.parametrize("name", ["shots\n[Service]\nUser=root", 'the "best"', "back\\slash", "tab\there"])
def test_a_folder_that_no_unit_can_name_is_refused(name, tmp_path):
    with pytest.raises(InstallError, match="incoming: expected a folder whose name has no .*; rename it"):
        Settings(0, "tcp://192.0.2.1:5557", tmp_path, incoming=f"/srv/{name}")
